"""The comparison's folder: what was asked for, and each member brought to its end, once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peftcli import files
from peftcli.compare.members import Member
from peftcli.compare.process import run_commands
from peftcli.errors import CheckFailed, DataError, NumericalError, StorageError
from peftcli.reports.record import RunRecord, load_record
from peftcli.runs.own_files import RECIPE_NAME, RECORD_NAME

NAME = "compare.json"
"""What was asked for, every member's figures, the recommendation."""
_LIMIT_BYTES = 64 << 20
_GOES_ON = (0, CheckFailed.exit_code)
"""Exit codes of a run that came to its end: one whose `expect` does not hold is compared like any other."""


@dataclass(frozen=True)
class Ended:
    """A member that came to its end. `failure`: why it is not to be compared."""

    member: Member
    run: Path
    record: RunRecord | None
    failure: str | None = None
    code: int = 0
    """Exit code of its process, negative for a signal."""
    final: np.ndarray | None = None
    """Numbers of the validation rows that score it, where tuning has seen the others; None: all."""


def require_free(folder: Path, request: dict[str, Any]) -> None:
    """Raises `StorageError` where a folder holds anything but a comparison of this very request."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise StorageError("the output path is a file, not a folder", where=str(folder), fix="choose another --output")
    held = _held(folder).get("request")
    if held == request:
        return
    if held is None and not any(folder.iterdir()):
        return
    what = "other files" if held is None else "a comparison of another request (recipe, members or budget)"
    raise StorageError(f"the folder holds {what}", where=str(folder), fix="choose another --output")


def _held(folder: Path) -> dict[str, Any]:
    """`compare.json` as it stands; empty where there is none."""
    try:
        document = json.loads(files.read_bounded(folder / NAME, limit_bytes=_LIMIT_BYTES))
    except (StorageError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def begin(folder: Path, request: dict[str, Any], rows: dict[str, str]) -> None:
    """Writes what was asked for, so that only the same command goes on here, and on the same data.

    `rows`: what the rows of each name are known by. Raises `DataError` where they are others than when it began.
    """
    held = _held(folder)
    if "request" not in held:
        first: dict[str, Any] = {"request": request, "rows": rows, "members": [], "recommended": None}
        files.write_text(folder / NAME, files.to_json(first))
    elif held.get("rows", rows) != rows:
        raise DataError(
            "the rows are no longer those that this comparison began with, and its members would not be comparable",
            where=str(folder),
            fix="put the data back, or begin again in another --output",
        )


@dataclass(frozen=True)
class Course:
    """How members are brought to their end: of which recipe, into which folder, how many at a time and where."""

    folder: Path
    recipe: Path
    settings: tuple[str, ...] = ()
    """As for `--set`, before those of a member."""
    places: tuple[Mapping[str, str], ...] = ({},)
    """Variables of the environment that point a member at its device; as many members train at a time."""
    quiet: bool = True
    say: Callable[[str], None] = lambda line: None

    def bring(
        self, members: Sequence[Member], *, told: Callable[[Sequence[Ended]], None] = lambda ended: None
    ) -> list[Ended]:
        """Trains members, goes on with those that were stopped, takes those that are there; in the order given.

        `told`: hears what has come to its end so far whenever one more does. A member that fails is told in its `failure`
        and the others go on; raises `StorageError` where the disk is the reason, which would end the others too.
        """
        # what has ended is read and not trained again: the same command goes on where it was stopped
        found = {number: there for number, member in enumerate(members) if (there := self._there(member)) is not None}
        missing = [number for number in range(len(members)) if number not in found]
        commands = [self._command(members[number]) for number in missing]

        def begun(at: int) -> None:
            verb = "going on with" if commands[at][0] == "resume" else "training"
            place = f"{len(found) + 1} of {len(members)}" if len(self.places) == 1 else f"of {len(members)}"
            self.say(f"{place}: {verb} {members[missing[at]].title}")

        def done(at: int, code: int) -> bool:
            member = members[missing[at]]
            found[missing[at]] = self._ended(member, code)
            told([found[number] for number in sorted(found)])
            if (failure := found[missing[at]].failure) is not None:
                self.say(f"{member.title} failed: {failure.splitlines()[0]}")
            # the others would meet the same full disk
            return code != StorageError.exit_code

        run_commands(commands, self.places, begun=begun, ended=done)
        unwritten = next((each for each in found.values() if each.code == StorageError.exit_code), None)
        if unwritten is not None:
            raise StorageError(
                f"{unwritten.member.folder} could not be written: {unwritten.failure}",
                where=str(unwritten.run),
                fix="make room; the same command goes on with what is left",
            )
        return [found[number] for number in range(len(members))]

    def _there(self, member: Member) -> Ended | None:
        """A member that has nothing left to do: trained to its end, or failed by its own numbers, which it would again."""
        run = self.folder / member.folder
        record = _record(run)
        if record is None or record.status == "interrupted":
            return None
        if record.status == "completed":
            return Ended(member, run, record)
        failure = record.failure
        if failure is not None and failure.exit_code == NumericalError.exit_code:
            return Ended(member, run, None, failure.message, failure.exit_code)
        return None

    def _command(self, member: Member) -> list[str]:
        run = self.folder / member.folder
        settings = [*self.settings, *member.overrides]
        # a run writes its own recipe first: with it, there is something to go on with
        begun = (run / RECIPE_NAME).is_file()
        command = ["resume", str(run)] if begun else ["train", str(self.recipe), "--output", str(run), *_set(settings)]
        return [*command, *(["--quiet"] if self.quiet else [])]

    def _ended(self, member: Member, code: int) -> Ended:
        run = self.folder / member.folder
        record = _record(run)
        if code in _GOES_ON and record is not None and record.status == "completed":
            return Ended(member, run, record)
        why = record.failure.message if record is not None and record.failure is not None else _by(code)
        return Ended(member, run, None, why, code)


def _set(settings: Sequence[str]) -> list[str]:
    return [part for text in settings for part in ("--set", text)]


def _by(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _record(run: Path) -> RunRecord | None:
    return load_record(run) if (run / RECORD_NAME).is_file() else None
