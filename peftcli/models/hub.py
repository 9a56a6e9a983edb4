"""Fetching a base or an adapter from the Hub into its local cache, one commit for a whole process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, errors, snapshot_download

from peftcli.errors import HubError
from peftcli.models.source import CONFIG_NAME, BaseSource, read_config_file
from peftcli.models.weight_files import INDEX_NAME, NAMED_BY_CONFIG, SINGLE_NAME, weight_names

_SMALL_PATTERNS = [
    "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.spm", "*.codes", "*.bpe", "*.vocab", "*.tokenizer",
    "tokenizer.model*",
]  # fmt: skip
_known: dict[tuple[str, str | None, str], Path] = {}
# the patterns cross folders, and repositories keep exports (onnx/, openvino/) below that are never read
_DEEPER = ["*/*.json", "*/*.txt", "*/*.model", "*/*.tiktoken"]


@contextlib.contextmanager
def hub_errors(name: str, revision: str | None, *, key: str = "model.revision") -> Iterator[None]:
    """Turns what the Hub's library raises into `HubError`, each cause told apart. `key`: where the revision is said."""
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(f"{name} is gated", fix="accept its terms on the Hub and set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{name} has no revision {revision!r}", fix=f"check `{key}`") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"{name} is not on the Hub, or is private", fix="check the name; set HF_TOKEN") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise offline(name) from error


def offline(name: str) -> HubError:
    """The error for something of the Hub that is not here and cannot be fetched."""
    return HubError(
        f"{name} is not in the local cache and the Hub cannot be reached",
        fix="connect once, give a folder that holds it, or use `builtin:tiny`",
    )


def adapter_folder(name: str, revision: str | None, *, fetch: bool) -> Path:
    """The snapshot folder of an adapter of the Hub, all its small files and tensors; its name is the commit.

    `fetch`: ask the Hub; else only the local cache is looked at. Raises what huggingface_hub raises.
    """
    key = (name, revision, constants.HF_HUB_CACHE)
    if (known := _known.get(key)) is not None and known.is_dir():
        return known
    names = [*_SMALL_PATTERNS, "*.safetensors"]
    if not fetch:
        return Path(snapshot_download(name, revision=revision, allow_patterns=names, local_files_only=True))
    _known[key] = found = _fetch(name, revision, names, but=[*_DEEPER, "*/*.safetensors"])
    return found


def files_of(name: str, revision: str | None, patterns: list[str], *, fetch: bool) -> Path:
    """The snapshot folder of a repository with some of its files. `fetch` and what it raises as for `adapter_folder`."""
    if not fetch:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
    return _fetch(name, revision, patterns)


def cached_folder(source: BaseSource, *, weights: bool) -> Path:
    """The snapshot folder of a Hub base, fetched where the Hub can be reached; its name is the commit.

    `weights`: with the files that hold them. Raises what huggingface_hub raises.
    """
    folder = _small_files(source)
    if not weights:
        return folder
    # weights come second: the configuration may name the file, and nothing large is fetched for a base that is refused
    config = read_config_file(folder / CONFIG_NAME)
    named = config.get(NAMED_BY_CONFIG)
    _fetch(source.location, folder.name, [named if isinstance(named, str) else SINGLE_NAME, INDEX_NAME])
    # an index names its parts, which can be fetched only once it is there
    if names := weight_names(folder, config):
        _fetch(source.location, folder.name, names)
    return folder


def folder_with(source: BaseSource, patterns: list[str]) -> Path:
    """The snapshot folder of a Hub base, with further small files than every base has. Raises as `cached_folder` does."""
    return _fetch(source.location, _small_files(source).name, patterns)


def known_folder(source: BaseSource) -> Path | None:
    """The folder that this process has read a Hub base from; None where it has read none yet."""
    return _known.get((source.location, source.revision, constants.HF_HUB_CACHE))


def _small_files(source: BaseSource) -> Path:
    """A branch is looked up once: configuration, tokenizer and weights are then of one commit, whatever is pushed."""
    found = known_folder(source)
    if found is None or not found.is_dir():
        found = _fetch(source.location, source.revision, _SMALL_PATTERNS, but=_DEEPER)
        # by the cache folder too, which may change within a process
        _known[source.location, source.revision, constants.HF_HUB_CACHE] = found
    return found


def _fetch(location: str, revision: str | None, names: list[str], *, but: list[str] | None = None) -> Path:
    """The snapshot folder with the files of these patterns; where the Hub cannot be reached, what is in the cache.

    huggingface_hub itself falls back on the cache, but in some releases (1.33) not for a commit, whose list of files
    it wants first.
    """
    try:
        return Path(snapshot_download(location, revision=revision, allow_patterns=names, ignore_patterns=but))
    # before the wider class below: an answer such as 404 must not turn into whatever the cache holds
    except errors.HfHubHTTPError:  # the Hub has answered
        raise
    except (errors.HTTPError, errors.OfflineModeIsEnabled):  # type: ignore[attr-defined]  # of its HTTP library
        return Path(
            snapshot_download(
                location, revision=revision, allow_patterns=names, ignore_patterns=but, local_files_only=True
            )
        )
