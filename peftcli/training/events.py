"""Events of a run: one JSON object a line in `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.redaction import redacted, redacted_name
from peftcli.training.history import logged
from peftcli.training.training_state import TrainingState

_FREE_TEXT = "message"


class EventLog:
    """Appends events; a number that is not finite is written as null, since JSON has none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _drop_torn_line(path)

    def follow(self, run: Path) -> None:
        """The run folder lies elsewhere now, with this file."""
        self.path = run / self.path.name

    def __call__(self, event: str, step: int, **facts: Any) -> None:
        files.append_line(self.path, json.dumps(_line(event, step, facts), ensure_ascii=False, allow_nan=False))

    def mend(self, state: TrainingState) -> str | None:
        """Makes the file say of the steps up to `state` what that knows of them, after a power loss or a flipped bit.

        Returns what was wrong; None where nothing was.
        """
        lines, unreadable = _read(self.path)
        # the last line of a step counts: a resumed run writes the steps after its checkpoint once more
        last = {(line["event"], line["step"]): line for line in lines}
        wanted = logged(state.losses, state.lines, state.evaluations)
        wrong = {
            key: {**last.get(key, {}), **line}
            for key, facts in wanted.items()
            # the facts of the checkpoint must be among the line's; a line may hold more, of a newer version
            if not (line := _line(*key, facts)).items() <= last.get(key, {}).items()
        }
        if not wrong and not unreadable:
            return None
        # a line of a step that is yet to come may be one whose number has changed
        kept = [line for line in lines if line["event"] not in ("train", "eval") or line["step"] <= state.step]
        files.write_text(self.path, "".join(files.json_line(line) for line in (*kept, *wrong.values())))
        return f"{self.path.name} was damaged: {len(wrong)} lines are taken from the checkpoint, {unreadable} dropped"


def _line(event: str, step: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"event": event, "step": step, **{name: _plain(name, value) for name, value in facts.items()}}


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines that are events, and how many others there are."""
    if not path.is_file():
        return [], 0
    with files.reading_errors(path):
        # `replace`: a flipped bit must damage its own line alone
        texts = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    found = [_event(text) for text in texts if text.strip()]
    lines = [line for line in found if line is not None]
    return lines, len(found) - len(lines)


def _event(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
        is_event = isinstance(line, dict) and isinstance(line["event"], str) and type(line["step"]) is int
        # what Python's reader takes (NaN, Infinity) and JSON has not, is no line of ours
        json.dumps(line, allow_nan=False)
    except (ValueError, KeyError, RecursionError):
        return None
    return line if is_event else None


def _plain(name: str, value: Any) -> Any:
    """A fact as JSON has it. Only texts may hold a credential: numbers and names are our own."""
    if isinstance(value, str):
        return redacted(value) if name == _FREE_TEXT else redacted_name(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_torn_line(path: Path) -> None:
    """A killed run may leave half a line; what is appended after it must not join it."""
    if not path.is_file():
        return
    with files.storage_errors(path):
        data = path.read_bytes()
    # up to the last line break: what comes after it was being written when the run was killed
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        files.write_bytes(path, whole)
