"""Which fields of `config.json` a failure is likely about.

Newer releases of transformers check the type of each field and name it; older ones take any value, and what computes
with it later fails without a name (transformers 5.3: `'str' object cannot be interpreted as an integer`). No release
checks names that are looked up, such as activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import CONFIG_MAPPING

from peftcli.errors import ModelError
from peftcli.models.hub import known_folder
from peftcli.models.source import BaseSource, read_model_config

_OF_A_VALUE = (TypeError, AttributeError, LookupError, ValueError)


def likely_fields(source: BaseSource, error: Exception) -> list[str]:
    """Each field whose value is not of the kind of the family's default, or was looked up in vain, in words."""
    if not isinstance(error, _OF_A_VALUE):
        return []
    config = readable_config(source)
    sought = error.args[0] if isinstance(error, KeyError) and error.args else None
    usual = _defaults(config.get("model_type"))
    found = []
    for name, value in config.items():
        kind, wanted = _kind(value), _kind(getattr(usual, name, None))
        # a family with one end token may have several
        if kind and wanted and kind != wanted and not name.endswith("token_id"):
            found.append(f"`{name}` is {_short(value)}, not {wanted}")
        # a looked-up name, such as an activation's, has the right type: only the failed key points at it
        elif sought is not None and sought in _values(value):
            found.append(f"`{name}` has {_short(sought)}, which does not exist")
    return found


def readable_config(source: BaseSource) -> Mapping[str, Any]:
    """`config.json`; empty where it cannot be read either."""
    folder = source.folder or known_folder(source)
    try:
        return {} if folder is None else read_model_config(folder)
    except ModelError:
        return {}


def _defaults(model_type: Any) -> Any:
    try:
        return CONFIG_MAPPING[model_type]()
    # a family that is not known, or whose configuration has no defaults
    except Exception:
        return None


def _kind(value: Any) -> str | None:
    kinds: list[tuple[type | tuple[type, ...], str]] = [
        # before numbers, for True is an int too
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "text"),
        ((list, tuple), "a list"),
        (Mapping, "a table"),
    ]
    return next((kind for types, kind in kinds if isinstance(value, types)), None)


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _values(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _values(inner)
    else:
        yield value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
