"""What a run logged while it trained: `metrics.jsonl`, read into columns by step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftcli import files

# 1 GiB: millions of steps, and a bound against a file that somebody else put there
MAX_METRICS_BYTES = 1 << 30

Point = tuple[int, float]
"""Step and value."""


@dataclass(frozen=True)
class Series:
    """Measurements by step, in the order of steps.

    `train` and `evaluations`: step -> the numbers of that line (a null is read as NaN; texts are left out).
    `events`: every other line as it was written. `unreadable`: lines that a crash tore and nobody could read.
    """

    train: dict[int, dict[str, float]] = field(default_factory=dict)
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    unreadable: int = 0

    def column(self, name: str) -> list[Point]:
        """(step, value) of a train column, finite values only."""
        return _column(self.train, name)

    def evaluation(self, name: str) -> list[Point]:
        """(step, value) of an evaluation metric such as `eval_loss`, finite values only."""
        return _column(self.evaluations, name)

    def evaluation_names(self) -> list[str]:
        """The metrics of all evaluations, in the order in which they first occur."""
        names = {name: None for values in self.evaluations.values() for name in values if name.startswith("eval_")}
        return list(names)

    def nonfinite_steps(self) -> list[int]:
        """Steps whose logged loss or gradient norm was NaN or infinite."""
        return [
            step
            for step, values in self.train.items()
            if not all(math.isfinite(values[name]) for name in ("loss", "grad_norm") if name in values)
        ]


def _column(lines: dict[int, dict[str, float]], name: str) -> list[Point]:
    return [(step, values[name]) for step, values in lines.items() if math.isfinite(values.get(name, math.nan))]


def read_metrics(path: Path) -> Series:
    """Reads `metrics.jsonl`. A missing file is an empty series (a run may fail before its first step).

    After a resume the last value of a step counts. A crash may tear the last line; when the resumed run wrote on,
    the torn piece and the next line share one line, of which the whole part is kept.
    """
    train: dict[int, dict[str, float]] = {}
    evaluations: dict[int, dict[str, float]] = {}
    events: list[dict[str, Any]] = []
    unreadable = 0
    for line in metrics_lines(path):
        if line is None:
            unreadable += 1
        elif line["event"] == "train":
            train[line["step"]] = _numbers(line)
        elif line["event"] == "eval":
            evaluations[line["step"]] = _numbers(line)
        else:
            events.append(line)
    return Series(dict(sorted(train.items())), dict(sorted(evaluations.items())), events, unreadable)


def metrics_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Each whole line of `metrics.jsonl` as written, with an `event` and a `step`; None for one that cannot be read."""
    if not path.is_file():
        return
    text = files.read_bounded(path, limit_bytes=MAX_METRICS_BYTES).decode("utf-8", errors="replace")
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        value = _parse(line)
        if value is None and number == len(lines):
            continue  # the last line without its newline: being written, or torn by a crash
        yield value


def _parse(line: str) -> dict[str, Any] | None:
    # a line that was torn is whole again from where the next one begins, which is always with its event
    for start in (0, line.rfind('{"event"')):
        try:
            value = json.loads(line[max(start, 0) :])
        except (ValueError, RecursionError):  # also an integer of more digits than Python reads
            continue
        if isinstance(value, dict) and isinstance(value.get("event"), str) and isinstance(value.get("step"), int):
            return value
    return None


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    numbers = {name: _number(value) for name, value in line.items() if name not in ("event", "step")}
    return {name: value for name, value in numbers.items() if value is not None}


def _number(value: Any) -> float | None:
    if value is None:
        return math.nan  # how a writer of strict JSON says NaN
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
