"""Events of a run: one JSON object a line in `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.redaction import redacted


class EventLog:
    """Appends events; a number that is not finite is written as null, since JSON has none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _drop_torn_line(path)

    def follow(self, run: Path) -> None:
        """The run folder lies elsewhere now, with this file."""
        self.path = run / self.path.name

    def __call__(self, event: str, step: int, **facts: Any) -> None:
        line = {"event": event, "step": step, **{name: _plain(value) for name, value in facts.items()}}
        files.append_line(self.path, redacted(json.dumps(line, ensure_ascii=False, allow_nan=False)))


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_torn_line(path: Path) -> None:
    """A killed run may leave half a line; what is appended after it must not join it."""
    if not path.is_file():
        return
    with files.storage_errors(path):
        data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        files.write_bytes(path, whole)
