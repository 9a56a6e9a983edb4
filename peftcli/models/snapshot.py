"""The files that a base consists of, wherever it came from: its folder, or the Hub snapshot in the local cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peftcli.errors import ModelError
from peftcli.models.source import BaseSource

Role = Literal["weights", "config", "tokenizer"]

_CONFIG_NAMES = frozenset({"config.json", "generation_config.json"})
_TOKENIZER_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_NOT_READ = frozenset({"README.txt", "LICENSE.txt", "NOTICE.txt", "USE_POLICY.txt", "modules.json", "peftcli.json"})


@dataclass(frozen=True)
class Snapshot:
    """`files`: name -> path of every file that is read when the base is loaded. `commit`: of the Hub, else None."""

    folder: Path
    commit: str | None
    files: dict[str, Path]


def snapshot(source: BaseSource) -> Snapshot:
    """What a base was loaded from. Raises `ModelError` when a Hub base is not in the local cache (load it first)."""
    folder = source.folder
    commit = None
    if folder is None:
        folder = _cached_folder(source)
        commit = folder.name
    found = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and role_of(path.name) is not None}
    return Snapshot(folder, commit, found)


def _cached_folder(source: BaseSource) -> Path:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.location, "config.json", revision=source.revision)
    if not isinstance(found, str):
        raise ModelError(f"{source.name} is not in the local cache", fix="load it once, for instance by `peft plan`")
    return Path(found).parent


def role_of(name: str) -> Role | None:
    """What a file of a base is for; None for one that is never read."""
    if name.endswith(".safetensors") or name.endswith(".safetensors.index.json"):
        return "weights"
    if name in _CONFIG_NAMES:
        return "config"
    return "tokenizer" if name.endswith(_TOKENIZER_SUFFIXES) and name not in _NOT_READ else None
