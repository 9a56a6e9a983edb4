"""Finding what a command is given: adapter, run or whole model, and what they say of the base."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.adapters.documents import CONFIG_NAME, read_config, read_own
from peftcli.errors import AdapterError, CheckpointError
from peftcli.models.load import DTYPES
from peftcli.models.own_files import is_there
from peftcli.models.source import CONFIG_NAME as MODEL_CONFIG_NAME
from peftcli.reports.seal import is_broken
from peftcli.runs.own_files import RECIPE_NAME, RECORD_NAME, is_run

_NO_MODEL = "name a run or adapter folder; `chat`, `generate`, `evaluate` and `inspect` take whole models too"


@dataclass(frozen=True)
class Location:
    """Where things lie: the adapter folder, and the run around it if there is one."""

    adapter: Path
    """The folder of the adapter, or of a model that needs none (`whole`)."""
    run: Path | None
    base: str | None
    """As recorded, or as the command line says; None where neither does."""
    told: bool
    """Whether the command line names it."""
    recorded: str | None
    """The base that the adapter itself names."""
    revision: str | None
    """Of a base from the Hub: the commit, tag or branch that the adapter was made for."""
    record: dict[str, Any]
    """`run.json`, empty for a bare adapter."""
    whole: bool = False

    @property
    def noun(self) -> str:
        """What lies there, as a message names it."""
        return "model" if self.whole else "adapter"


def holds_a_model(path: Path) -> bool:
    """Whether a folder holds a whole model, merged or as it was published, and neither a run nor an adapter."""
    return is_there(path / MODEL_CONFIG_NAME) and not (path / CONFIG_NAME).exists()


def locate_model(path: Path, *, base: str | None = None) -> Location:
    """A whole model, and the base that it was merged from where our file beside it names one."""
    own = read_own(path).get("base") or {}
    name = _text(own.get("name"))
    revision = _text(own.get("commit")) if base in (None, name) else None
    return Location(path, None, base or name, base is not None, recorded=name, revision=revision, record={}, whole=True)


def locate(path: str | Path, *, base: str | None = None) -> Location:
    """Finds the adapter in a run or adapter folder, and the base that it belongs to.

    Raises `AdapterError` (nothing there), `CheckpointError` (the run wrote no adapter).
    """
    path = Path(path).expanduser()
    if (path / CONFIG_NAME).exists():
        run = path.parent if (path.parent / RECORD_NAME).is_file() else None
        return _located(path, run, base)
    if (path / RECORD_NAME).is_file() or (path / RECIPE_NAME).is_file():
        adapter = path / "adapter"
        if not (adapter / CONFIG_NAME).exists():
            seeds = sorted(found.name for found in path.glob("seed-*") if found.is_dir())
            if seeds:
                raise AdapterError(
                    f"this run holds an adapter for each of {len(seeds)} seeds",
                    where=str(path),
                    fix=f"name one of them, for instance {path / seeds[0]}",
                )
            raise CheckpointError(
                "the run has not written an adapter", where=str(path), fix="`peft resume` it, or train again"
            )
        return _located(adapter, path, base)
    raise no_run(path)


def no_run(path: Path) -> AdapterError:
    """What to say of a path that a command was to take for a run or adapter, and that is neither, in every command."""
    if not path.exists():
        return AdapterError("no such run or adapter folder", where=str(path), fix="check the path")
    if not path.is_dir():
        fix = (
            f"name the folder; `peft train {path}` makes one" if path.suffix in (".yaml", ".yml") else "name the folder"
        )
        return AdapterError("this is a file, not a run or adapter folder", where=str(path), fix=fix)
    if holds_a_model(path):
        return AdapterError("this is a whole model, without an adapter", where=str(path), fix=_NO_MODEL)
    return AdapterError("this is neither a run nor an adapter", where=str(path), fix="name a run or adapter folder")


def recorded_run(path: str | Path) -> Path:
    """The folder of a run that wrote its record.

    Raises `AdapterError` (no run), `CheckpointError` (no record yet, or a damaged one).
    """
    path = Path(path).expanduser()
    if (path / RECORD_NAME).is_file():
        read_record(path)
        return path
    if is_run(path):
        raise CheckpointError("the run has not written its record", where=str(path), fix=f"peft resume {path}")
    if (path / CONFIG_NAME).exists():
        raise AdapterError("this is an adapter, not its run", where=str(path), fix="name the run's folder")
    raise no_run(path)


def _located(adapter: Path, run: Path | None, base: str | None) -> Location:
    record = read_record(run) if run is not None else {}
    name, revision = _recorded_base(adapter)
    if base is not None:
        # a revision is one of the repository that it was recorded with
        own = revision if base == name else None
        return Location(adapter, run, base, told=True, recorded=name, revision=own, record=record)
    return Location(adapter, run, name, told=False, recorded=name, revision=revision, record=record)


def _recorded_base(adapter: Path) -> tuple[str | None, str | None]:
    """Name and revision of the base; of a base from the Hub the very commit, where our own file knows it."""
    own, config = read_own(adapter).get("base") or {}, read_config(adapter)
    named = config.get("base_model_name_or_path")
    name = own.get("name") or named
    # a revision goes with the name that stands in the same file: the two files may name different bases
    revision = own.get("commit") if own.get("name") == name else None
    revision = revision or (config.get("revision") if named == name else None)
    return _text(name), _text(revision)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def read_record(run: Path) -> dict[str, Any]:
    """`run.json` as plain JSON; empty while a run has not written one."""
    path = run / RECORD_NAME
    if not path.is_file():
        return {}
    try:
        record = json.loads(files.read_bounded(path, limit_bytes=64 << 20))
    except (ValueError, RecursionError) as error:
        raise CheckpointError("run.json is damaged", where=str(path), fix="train again") from error
    if isinstance(record, dict) and is_broken(record):
        raise CheckpointError(
            "run.json is not what the run wrote: its hash does not match",
            where=str(path),
            fix="put the file back, or train again; to use the adapter alone, copy its folder out of the run",
        )
    if not isinstance(record, dict) or not _is_usable(record):
        raise CheckpointError("run.json is damaged", where=str(path), fix="train again")
    return record


def _is_usable(record: dict[str, Any]) -> bool:
    """Whether the parts that are used beyond reports are what we write."""
    settings, samples = record.get("settings", {}), record.get("samples", [])
    return (
        isinstance(settings, dict)
        and str(settings.get("dtype", "float32")) in DTYPES
        and isinstance(samples, list)
        and all(isinstance(sample, dict) and isinstance(sample.get("prompt"), str) for sample in samples)
    )
