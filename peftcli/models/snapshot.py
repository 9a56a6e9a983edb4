"""The files that a base consists of, wherever it came from: its folder, or the Hub snapshot in the local cache.

Exactly these are read when the base is loaded, and exactly these are hashed into a lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peftcli.errors import Fault, ModelError
from peftcli.models.hub import known_folder
from peftcli.models.source import CONFIG_NAME, BaseSource, read_model_config
from peftcli.models.weight_files import require_own_files, require_whole, weight_names

FileRole = Literal["config", "tokenizer"]

TEMPLATES_FOLDER = "additional_chat_templates"
"""Where transformers keeps further chat templates beside a tokenizer."""
_CONFIG_NAMES = frozenset({CONFIG_NAME, "generation_config.json"})
_TOKENIZER_SUFFIXES = (
    ".json", ".jinja", ".model", ".txt", ".tiktoken", ".spm", ".codes", ".bpe", ".vocab", ".tokenizer",
)  # fmt: skip
_NOT_READ = frozenset(
    {"README.txt", "LICENSE.txt", "NOTICE.txt", "USE_POLICY.txt", "modules.json", "peftcli.json", "adapter_config.json"}
)
_LARGEST_BYTES = 128 << 20
"""Tokenizers of 250,000 tokens have 35 MB."""
_WEIGHTS_ENDS = (".safetensors", ".safetensors.index.json")


@dataclass(frozen=True)
class Snapshot:
    """`files`: name -> path of every file that is read when the base is loaded. `commit`: of the Hub, else None."""

    folder: Path
    commit: str | None
    files: dict[str, Path]


def snapshot(source: BaseSource) -> Snapshot:
    """What a base was loaded from. Raises `ModelError` when a Hub base is not in the local cache (load it first), and
    for files that are not to be read."""
    folder = source.folder
    commit = None
    if folder is None:
        folder = _cached_folder(source)
        commit = folder.name
    weights = weight_names(folder, read_model_config(folder))
    # sorted: the order goes into the lock
    found = checked_files(folder, sorted([*small_names(folder), *weights]))
    # after the check of single files, which names the fault where a part is a bad link
    require_whole(folder, weights)
    return Snapshot(folder, commit, found)


def _cached_folder(source: BaseSource) -> Path:
    from huggingface_hub import try_to_load_from_cache

    # what this process has fetched comes first: a branch may have moved in the cache since
    known = known_folder(source)
    if known is not None:
        return known
    found = try_to_load_from_cache(source.location, CONFIG_NAME, revision=source.revision)
    if not isinstance(found, str):
        raise ModelError(f"{source.name} is not in the local cache", fix="load it once, for instance by `peft plan`")
    return Path(found).parent


def small_names(folder: Path) -> list[str]:
    """Configuration, tokenizer and templates of a folder, by their names; folders are not among them."""
    # a folder called `tokenizer.json` is no file to refuse, it is never opened
    names = [path.name for path in folder.iterdir() if role_of(path.name) is not None and not path.is_dir()]
    templates = (folder / TEMPLATES_FOLDER).glob("*.jinja")
    found = sorted([*names, *(f"{TEMPLATES_FOLDER}/{path.name}" for path in templates)])
    large = [name for name in found if _size(folder / name) > _LARGEST_BYTES]
    if large:
        faults = [Fault(f"{name} is larger than {_LARGEST_BYTES >> 20} MiB", str(folder / name)) for name in large]
        fix = "do not trust this model; get it from its own page"
        raise ModelError("files beside the weights are too large", faults=faults, fix=fix)
    return found


def _size(path: Path) -> int:
    """Of a file; 0 where it cannot be read, which opening it will report."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def checked_files(folder: Path, names: list[str]) -> dict[str, Path]:
    """Name -> path. Raises `ModelError` naming every file that is no regular file of the folder."""
    require_own_files(folder, names, "files of the folder are not to be read")
    return {name: folder / name for name in names}


def role_of(name: str) -> FileRole | None:
    """What a file beside the weights is for; None for one that is never read."""
    if name in _CONFIG_NAMES:
        return "config"
    # before suffixes: an index of weights ends in .json like a tokenizer's files
    if name in _NOT_READ or name.endswith(_WEIGHTS_ENDS):
        return None
    return "tokenizer" if name.endswith(_TOKENIZER_SUFFIXES) or name.startswith("tokenizer.model") else None
