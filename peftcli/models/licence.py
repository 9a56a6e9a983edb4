"""The licence of a base, as its model card states it: what is made from a base stays under it."""

from __future__ import annotations

from pathlib import Path

from peftcli.models.builtin import BUILTIN_LICENCE
from peftcli.models.source import BUILTIN_PREFIX, BaseSource

_KEYS = ("license", "license_name", "license_link")
_CARD_NAME = "README.md"
_LIMIT_BYTES = 4 << 20


def base_licence(source: BaseSource) -> dict[str, str]:
    """The front matter's keys on the licence (`license`, and `license_name`, `license_link` where it is no common one);
    empty where no card says it, or none can be reached."""
    if source.name.startswith(BUILTIN_PREFIX):
        return {"license": BUILTIN_LICENCE}
    card = _card(source)
    stated = {} if card is None else _stated(card)
    link = stated.get("license_link", "")
    if link and not link.startswith(("https://", "http://")):
        # a file of the base's own repository
        stated.pop("license_link")
        if not source.is_local:
            stated["license_link"] = f"https://huggingface.co/{source.location}/blob/main/{link}"
    return stated if "license" in stated else {}


def _card(source: BaseSource) -> Path | None:
    if source.folder is not None:
        path = source.folder / _CARD_NAME
        return path if path.is_file() and path.stat().st_size <= _LIMIT_BYTES else None
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(source.location, _CARD_NAME, revision=source.revision))
    # no card, no network: then nothing is known of the licence, and that is said
    except (errors.HfHubHTTPError, errors.HTTPError, OSError, ValueError):  # type: ignore[attr-defined]
        return None


def _stated(card: Path) -> dict[str, str]:
    import yaml
    from huggingface_hub import metadata_load

    try:
        # only the front matter is parsed, by a safe loader
        found = metadata_load(card)
    except (yaml.YAMLError, ValueError, UnicodeDecodeError, RecursionError):
        return {}
    document = found if isinstance(found, dict) else {}
    values = {key: document.get(key) for key in _KEYS}
    one = {key: value[0] if isinstance(value, list) and value else value for key, value in values.items()}
    return {key: value for key, value in one.items() if isinstance(value, str) and value}
