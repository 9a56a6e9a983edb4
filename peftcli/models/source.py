"""Where a base model comes from: built in, a folder, or the Hub; and the checks on a folder before anything is loaded."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.errors import Fault, ModelError

BUILTIN_PREFIX = "builtin:"
CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
_SHARD_NAME = re.compile(r"[\w.-]+\.safetensors")
_CONFIG_LIMIT_BYTES = 4 << 20
_INDEX_LIMIT_BYTES = 64 << 20
_NOT_TRUSTED = "do not trust this model; get it from its own page"
MAX_LAYERS = 10_000
_CODE_KEYS = ("auto_map", "trust_remote_code")


@dataclass(frozen=True)
class BaseSource:
    """`location` is what transformers is given: a folder, or a Hub id with `revision`."""

    name: str
    location: str
    revision: str | None
    folder: Path | None

    @property
    def is_local(self) -> bool:
        return self.folder is not None


def resolve_base(base: str, *, folder: Path, revision: str | None = None) -> BaseSource:
    """Resolves the recipe's `model.base` relative to the recipe's `folder`.

    Raises `ModelError` (exit 4) when a path does not hold a model; never talks of repository ids for a path.
    """
    if base.startswith(BUILTIN_PREFIX):
        from peftcli.models.builtin import builtin_base

        path = builtin_base(base.removeprefix(BUILTIN_PREFIX))
        return BaseSource(base, str(path), None, path)
    if not files.names_a_path(base, folder):
        return BaseSource(base, base, revision, None)
    path = (folder / Path(base).expanduser()).resolve()
    _check_folder(path, base)
    return BaseSource(base, str(path), None, path)


def _check_folder(path: Path, base: str) -> None:
    if not path.exists():
        raise ModelError(f"no such model folder: {base}", where=str(path), fix="give the folder that holds config.json")
    if not path.is_dir():
        raise ModelError(f"{base} is a file, not a model folder", where=str(path), fix="give the folder that holds it")
    if not (path / CONFIG_NAME).is_file():
        if (path / "adapter_config.json").is_file():
            raise ModelError(
                f"{base} is an adapter, not a base model",
                where=str(path),
                fix="name the base under `model.base` and the adapter under `model.init_adapter`",
            )
        raise ModelError(f"{base} has no config.json", where=str(path), fix="give the folder that holds config.json")
    read_model_config(path)


def read_model_config(path: Path) -> dict[str, Any]:
    """`config.json` of a model folder, bounded, refused when it asks for code to be run."""
    return read_config_file(path / CONFIG_NAME)


def read_config_file(file: Path) -> dict[str, Any]:
    """The same of a file that may lie in the Hub's cache."""
    try:
        config = json.loads(files.read_bounded(file, limit_bytes=_CONFIG_LIMIT_BYTES))
    except (ValueError, RecursionError) as error:
        raise ModelError("config.json is not valid JSON", where=str(file), fix="download the model again") from error
    if not isinstance(config, dict):
        raise ModelError("config.json is not a JSON object", where=str(file), fix="download the model again")
    for where, section in _sections(config, "config.json"):
        for key, value in section.items():
            if _asks_for_code(key, value):
                raise ModelError(
                    f"the model asks to run its own code (`{key}` in {where})",
                    where=str(file),
                    fix="use a model of a family that transformers has built in",
                )
            if isinstance(value, int) and "layer" in key and value > MAX_LAYERS:
                raise ModelError(
                    f"`{key}` is {value:,} in {where}; no model has so many layers", where=str(file), fix=_NOT_TRUSTED
                )
    return config


def _asks_for_code(key: str, value: Any) -> bool:
    """Classes of the model's own, and kernels by the name of a repository."""
    if key in _CODE_KEYS or key.endswith("_internal"):
        return True
    return key.endswith("_implementation") and isinstance(value, str) and not value.replace("_", "").isalnum()


def _sections(value: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object in a document and where it stands."""
    waiting = [(where, value)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, dict):
            yield where, value
            waiting += [(f"{where}: {key}"[:200], child) for key, child in value.items()]
        elif isinstance(value, list):
            waiting += [(where, child) for child in value]


def check_weight_files(path: Path) -> None:
    """The weights of a local base are safetensors inside its folder: no pickle, no link or path that leads outside.

    Raises `ModelError` naming every file that is missing or not to be trusted.
    """
    index = path / INDEX_NAME
    if index.is_file():
        names = _shard_names(index)
    elif (path / "model.safetensors").exists():
        names = ["model.safetensors"]
    else:
        pickled = sorted(file.name for file in path.glob("*.bin"))
        raise ModelError(
            f"only pickled weights here ({', '.join(pickled)})" if pickled else "no weights here (model.safetensors)",
            where=str(path),
            fix="convert it where you trust it: AutoModel.from_pretrained(...).save_pretrained(folder)"
            if pickled
            else "download the model again",
        )
    faults = [fault for name in names if (fault := _weight_file_fault(path, name)) is not None]
    if faults:
        raise ModelError("weight files are missing or not to be trusted", faults=faults)


def _shard_names(index: Path) -> list[str]:
    try:
        weight_map = json.loads(files.read_bounded(index, limit_bytes=_INDEX_LIMIT_BYTES))["weight_map"]
        return sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError("the shard index is damaged", where=str(index), fix="download the model again") from error


def _weight_file_fault(path: Path, name: str) -> Fault | None:
    where = str(path / INDEX_NAME)
    if not _SHARD_NAME.fullmatch(name):
        return Fault(f"the index names {name[:80]!r}, which is not a plain file name", where, _NOT_TRUSTED)
    file = path / name
    where = str(file)
    try:
        real = file.resolve(strict=True)
        mode = real.stat().st_mode
    except OSError:
        return Fault(f"{name} is missing", where, "download the model again")
    if not stat.S_ISREG(mode):
        return Fault(f"{name} is not a regular file", where, _NOT_TRUSTED)
    # the Hub cache keeps snapshots/<commit>/name -> ../../blobs/<hash>; any other link outside is refused
    inside = real.is_relative_to(path.resolve()) or (real.parent.name == "blobs" and path.parent.name == "snapshots")
    return None if inside else Fault(f"{name} is a link that leads outside the folder", where, _NOT_TRUSTED)
