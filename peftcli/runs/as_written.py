"""Whether a finished run is still what it wrote: a flipped bit in an adapter or a tokenizer changes answers, not errors.

    run.json       hash of each file of `adapter/`, of recipe, lock, log and findings (and of itself)
    recipe.lock    hash of the adapter's tensors, and of the base's configuration

An adapter folder that is copied out of its run is on its own.
"""

from __future__ import annotations

from pathlib import Path

from peftcli import files
from peftcli.adapters.documents import TENSORS_NAME
from peftcli.errors import AdapterError, ModelError
from peftcli.lock.document import LOCK_NAME, Lock
from peftcli.lock.lock_file import read_lock
from peftcli.models.snapshot import role_of, small_names, snapshot
from peftcli.models.source import BaseSource
from peftcli.reports.seal import changed_beside
from peftcli.runs.locating import Location
from peftcli.runs.own_files import RECIPE_NAME

_FREE = frozenset({"README.md"})
"""The card is for readers; nothing is computed from it."""


def adapter_hashes(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file of an adapter folder that is read by anybody."""
    names = {path.name for path in folder.iterdir() if path.is_file() and path.name not in _FREE}
    # further chat templates lie in a folder of their own
    names |= {name for name in small_names(folder) if "/" in name}
    return {name: files.sha256_file(folder / name) for name in sorted(names)}


def require_as_written(location: Location, source: BaseSource | None = None) -> None:
    """Raises `AdapterError` or `ModelError` for a file that is not what the run wrote or was trained with.

    `source`: the base; None where it is not at hand.
    """
    # an adapter that was copied out of its run, or put into another one's
    if location.run is None or location.adapter != location.run / "adapter":
        return
    changed = changed_beside(location.run, location.record.get("run_files") or {}, (RECIPE_NAME, LOCK_NAME))
    if changed is not None:
        raise _changed(location.run / changed)
    recorded = location.record.get("adapter_files") or {}
    lock = read_lock(location.run / LOCK_NAME) if (location.run / LOCK_NAME).is_file() else None
    expected = {**recorded, **_locked_tensors(lock)}
    if not expected:
        return
    for name, sha256 in expected.items():
        path = location.adapter / name
        if not path.is_file() or files.sha256_file(path) != sha256:
            raise _changed(location.adapter / name, name)
    # a file more is a change too: a chat template that was put in would change every prompt
    added = [name for name in small_names(location.adapter) if recorded and name not in recorded]
    if added:
        raise _changed(location.adapter / added[0], added[0])
    # another base than the recorded one was asked for by name
    if lock is not None and source is not None and not location.told:
        _require_configuration(lock, source, location)


def _locked_tensors(lock: Lock | None) -> dict[str, str]:
    runs = lock.expected.runs if lock is not None and lock.expected is not None else []
    # several seeds have an adapter each; the lock of all does not say which lies here
    found = runs[0].adapter_sha256 if len(runs) == 1 else None
    return {} if found is None else {TENSORS_NAME: found}


def _changed(path: Path, name: str | None = None) -> AdapterError:
    return AdapterError(
        f"{name or path.name} is not what the run wrote: its SHA-256 differs from the one in the run's record and lock",
        where=str(path),
        fix="put the file back, or train again; to use it as it is, copy the adapter folder out of the run",
    )


def _require_configuration(lock: Lock, source: BaseSource, location: Location) -> None:
    """The fingerprint covers the weights of the base; its configuration steers what they compute."""
    for name, path in snapshot(source).files.items():
        locked = lock.base.files.get(name)
        if role_of(name) == "config" and locked is not None and files.sha256_file(path) != locked:
            raise ModelError(
                f"{name} of the base is not what the run was trained with: its SHA-256 differs from the lock's",
                where=str(path),
                fix="put the file back, or name another copy of the base: --model BASE",
            )
