"""The comparison's folder: what was asked for, and each member brought to its end, once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.compare.members import Member
from peftcli.compare.process import run_command
from peftcli.errors import (
    CheckFailed,
    CheckpointError,
    DataError,
    DeviceError,
    HubError,
    ModelError,
    PeftcliError,
    RecipeError,
    StorageError,
)
from peftcli.reports.record import RunRecord, load_record
from peftcli.runs.own_files import RECIPE_NAME, RECORD_NAME

NAME = "compare.json"
"""What was asked for, every member's figures, the recommendation."""
_LIMIT_BYTES = 64 << 20
_GATES = 10
_GOES_ON = (0, _GATES)
_OF_ITS_OWN = (8, 9)
"""Exit codes that say something of the member (diverged, out of memory) and not of what it was given."""


@dataclass(frozen=True)
class Ended:
    """A member that came to its end. `failure`: why it is not to be compared."""

    member: Member
    run: Path
    record: RunRecord | None
    failure: str | None = None


def require_free(folder: Path, request: dict[str, Any]) -> None:
    """Raises `StorageError` where a folder holds anything but a comparison of this very request."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise StorageError("the output path is a file, not a folder", where=str(folder), fix="choose another --output")
    held = _request_in(folder)
    if held == request:
        return
    if held is None and not any(folder.iterdir()):
        return
    what = "other files" if held is None else "a comparison of another request (recipe, members or budget)"
    raise StorageError(f"the folder holds {what}", where=str(folder), fix="choose another --output")


def _request_in(folder: Path) -> Any:
    try:
        document = json.loads(files.read_bounded(folder / NAME, limit_bytes=_LIMIT_BYTES))
    except (StorageError, ValueError):
        return None
    return document.get("request") if isinstance(document, dict) else None


def begin(folder: Path, request: dict[str, Any]) -> None:
    """Writes what was asked for, so that only the same command goes on here."""
    if _request_in(folder) is None:
        files.write_text(folder / NAME, files.to_json({"request": request, "members": [], "recommended": None}))


def end_member(
    folder: Path, recipe: Path, member: Member, settings: Sequence[str], *, quiet: bool, say: Callable[[str], None]
) -> Ended:
    """Trains a member, goes on with one that was stopped, or takes one that is there.

    Raises `PeftcliError` where a member ends for a reason that would end the others too.
    """
    run = folder / member.folder
    record = _record(run)
    if record is None or record.status != "completed":
        begun = (run / RECIPE_NAME).is_file()
        say(f"{'going on with' if begun else 'training'} {member.folder.removeprefix('members/')}")
        command = ["resume", str(run)] if begun else _train(recipe, run, [*settings, *member.overrides])
        code = run_command([*command, *(["--quiet"] if quiet else [])])
        record = _record(run)
        if code not in _GOES_ON:
            return _failed(member, run, record, code)
    return Ended(member, run, record)


def _train(recipe: Path, run: Path, settings: Sequence[str]) -> list[str]:
    return ["train", str(recipe), "--output", str(run), *(part for text in settings for part in ("--set", text))]


def _record(run: Path) -> RunRecord | None:
    return load_record(run) if (run / RECORD_NAME).is_file() else None


def _failed(member: Member, run: Path, record: RunRecord | None, code: int) -> Ended:
    why = record.failure.message if record is not None and record.failure is not None else f"exit code {code}"
    if code in _OF_ITS_OWN or code < 0:
        return Ended(member, run, None, why)
    kind = next((kind for kind in _KINDS if kind.exit_code == code), CheckFailed)
    raise kind(
        f"{member.folder} ended with exit code {code}: {why}",
        where=str(run),
        fix="mend it; the same command goes on with what is left",
    )


_KINDS: tuple[type[PeftcliError], ...] = (
    RecipeError, DataError, ModelError, DeviceError, StorageError, CheckpointError, HubError,
)  # fmt: skip
"""Errors by their exit code: what stops a member for a reason of recipe, data or machine stops the comparison alike."""
