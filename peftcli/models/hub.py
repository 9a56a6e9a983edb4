"""Fetching a base from the Hub into its local cache, one commit for a whole process."""

from __future__ import annotations

import functools
from pathlib import Path

from huggingface_hub import constants, snapshot_download

from peftcli.models.source import CONFIG_NAME, BaseSource, read_config_file
from peftcli.models.weight_files import INDEX_NAME, NAMED_BY_CONFIG, SINGLE_NAME, weight_names

_SMALL_PATTERNS = [
    "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.spm", "*.codes", "*.bpe", "*.vocab", "*.tokenizer",
    "tokenizer.model*",
]  # fmt: skip
_DEEPER = ["*/*.json", "*/*.txt", "*/*.model", "*/*.tiktoken"]


def cached_folder(source: BaseSource, *, weights: bool) -> Path:
    """The snapshot folder of a Hub base, fetched where the Hub can be reached; its name is the commit.

    `weights`: with the files that hold them. Raises what huggingface_hub raises.
    """
    folder = _small_files(source.location, source.revision, constants.HF_HUB_CACHE)
    if not weights:
        return folder
    config = read_config_file(folder / CONFIG_NAME)
    named = config.get(NAMED_BY_CONFIG)
    _fetch(source.location, folder.name, [named if isinstance(named, str) else SINGLE_NAME, INDEX_NAME])
    if names := weight_names(folder, config):
        _fetch(source.location, folder.name, names)
    return folder


@functools.lru_cache(maxsize=16)
def _small_files(location: str, revision: str | None, cache: str) -> Path:
    """A branch is looked up once: configuration, tokenizer and weights are then of one commit, whatever is pushed."""
    found = snapshot_download(location, revision=revision, allow_patterns=_SMALL_PATTERNS, ignore_patterns=_DEEPER)
    return Path(found)


def _fetch(location: str, commit: str, names: list[str]) -> None:
    snapshot_download(location, revision=commit, allow_patterns=names)
