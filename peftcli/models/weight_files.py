"""Which files hold the weights of a base: found in its folder as transformers finds them, and checked before it does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.errors import Fault, ModelError
from peftcli.models.own_files import file_fault, is_there
from peftcli.models.tensor_header import DamagedHeader, tensor_header

SINGLE_NAME = "model.safetensors"
"""The weights of a model in one file."""
INDEX_NAME = "model.safetensors.index.json"
"""Which tensor lies in which of several files."""
NAMED_BY_CONFIG = "transformers_weights"
"""The key of `config.json` that names another file, or another index, than these two."""
NOT_TRUSTED = "put the file itself there; where it is not yours, do not trust this model"
_AGAIN = "download the model again"
_INDEX_SUFFIX = ".index.json"
_WEIGHTS_SUFFIX = ".safetensors"
# parts of letters, digits, dots and dashes that do not begin with a dot: no way up, none from the root
_SAFE_NAME = re.compile(r"(?:\w[\w.-]*/)*\w[\w.-]*\.safetensors")
_INDEX_LIMIT_BYTES = 64 << 20


def weight_names(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """The files that are read for the weights, relative to `folder`: an index first, then its shards; [] where neither
    a file nor an index is there. Only the index is opened. Raises `ModelError`."""
    entry = entry_name(folder, config)
    if entry is None:
        return []
    return _index_and_shards(folder, entry) if entry.endswith(_INDEX_SUFFIX) else [entry]


def _index_and_shards(folder: Path, entry: str) -> list[str]:
    fault = file_fault(folder / entry, folder)
    if fault is not None:
        raise ModelError(f"{entry} {fault}", where=str(folder / entry), fix=_AGAIN)
    place = entry.rpartition("/")[0]
    return [entry, *(f"{place}/{name}" if place else name for name in _shard_names(folder / entry))]


def entry_name(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The file that loading begins with. Whatever has the name of the single file hides an index, as in transformers."""
    named = config.get(NAMED_BY_CONFIG)
    if named is not None:
        return _checked_entry(named, folder)
    return next((name for name in (SINGLE_NAME, INDEX_NAME) if is_there(folder / name)), None)


def _checked_entry(named: Any, folder: Path) -> str:
    if isinstance(named, str) and _SAFE_NAME.fullmatch(named.removesuffix(_INDEX_SUFFIX)):
        return named
    raise ModelError(
        f"`{NAMED_BY_CONFIG}` in config.json is {str(named)[:80]!r}, which is not a safetensors file inside the folder",
        where=str(folder / "config.json"),
        fix=NOT_TRUSTED,
    )


def _shard_names(index: Path) -> list[str]:
    try:
        weight_map = json.loads(files.read_bounded(index, limit_bytes=_INDEX_LIMIT_BYTES))["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError("the shard index is damaged", where=str(index), fix=_AGAIN) from error
    strange = [name for name in names if not _SAFE_NAME.fullmatch(name)]
    if strange:
        faults = [
            Fault(f"the index names {name[:80]!r}, which is not a plain file name", str(index), NOT_TRUSTED)
            for name in strange
        ]
        raise ModelError("weight files are missing or not to be trusted", faults=faults)
    return names


def check_weight_files(folder: Path, config: Mapping[str, Any]) -> None:
    """The weights of a base are safetensors inside its folder: no pickle, no link or path that leads outside.

    Raises `ModelError` naming every file that is missing or not to be trusted.
    """
    names = weight_names(folder, config)
    if not names:
        raise _none_here(folder)
    if names == [SINGLE_NAME] and is_there(folder / INDEX_NAME):
        # not read, but whoever put it there means it to be: a folder that contradicts itself is not opened
        names = [SINGLE_NAME, *_index_and_shards(folder, INDEX_NAME)]
    require_own_files(folder, names, "weight files are missing or not to be trusted")
    require_whole(folder, names)


def require_whole(folder: Path, names: Iterable[str]) -> None:
    """Raises `ModelError` naming every weight file that is not filled by the tensors of its header: nobody has to read or
    hash all of it to know that it was cut, or blown up."""
    faults = [
        Fault(f"{name} {fault}", str(folder / name), _AGAIN)
        for name in names
        if name.endswith(_WEIGHTS_SUFFIX) and (fault := _header_fault(folder / name)) is not None
    ]
    if faults:
        raise ModelError("weight files are damaged", faults=faults)


def _header_fault(file: Path) -> str | None:
    try:
        tensor_header(file)
    except DamagedHeader as fault:
        return str(fault)
    return None


def require_own_files(folder: Path, names: Iterable[str], headline: str) -> None:
    """Raises `ModelError` naming every file that is missing, or no regular file of the folder."""
    faults = [
        Fault(f"{name} {fault}", str(folder / name), _AGAIN if fault == "is missing" else NOT_TRUSTED)
        for name in names
        if (fault := file_fault(folder / name, folder)) is not None
    ]
    if faults:
        raise ModelError(headline, faults=faults)


def _none_here(folder: Path) -> ModelError:
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern))
    if not pickled:
        return ModelError("no weights here (model.safetensors)", where=str(folder), fix=_AGAIN)
    return ModelError(
        f"only pickled weights here ({', '.join(pickled[:3])})",
        where=str(folder),
        fix="convert it where you trust it: AutoModel.from_pretrained(...).save_pretrained(folder)",
    )
