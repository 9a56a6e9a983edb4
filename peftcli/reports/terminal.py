"""Plain tables for a terminal: at most 80 columns unless told otherwise, colour only where it is wanted.

Colour follows https://no-color.org: none when NO_COLOR is set to anything, none into a pipe, a file or a dumb terminal.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal

from peftcli.reports.checks import run_checks
from peftcli.reports.folder import RunFacts
from peftcli.reports.record import EvaluationRecord
from peftcli.reports.scores import Score, metric_label, scores, scores_of
from peftcli.reports.verdict import judge
from peftcli.visible import reveal

WIDTH = 80
_GAP = "  "
_MIN_COLUMN = 8

Colour = Literal["bold", "dim", "green", "yellow", "red"]
_CODES: dict[Colour, str] = {"bold": "1", "dim": "2", "green": "32", "yellow": "33", "red": "31"}
_GRADES: dict[str, Colour] = {"learned": "green", "worse": "red", "failed": "red", "leaked": "red"}
_OUTCOMES: dict[str, Colour] = {"bad": "red", "warn": "yellow", "note": "dim", "clear": "green"}


def paint(text: str, colour: Colour, *, enabled: bool) -> str:
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if enabled else text


def display_width(text: str) -> int:
    """Columns that a terminal gives to a text: wide characters take two, combining marks none."""
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.combining(char) or char in "\u200c\u200d\ufe0f":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fit(text: str, width: int) -> str:
    """`text` made visible, on one line, cut to `width` columns with an ellipsis."""
    text = reveal(text, one_line=True)
    if display_width(text) <= width:
        return text
    kept, used = "", 0
    for char in text:
        used += _char_width(char)
        if used > width - 1:
            break
        kept += char
    return f"{kept}…"


def _pad(text: str, width: int, *, right: bool) -> str:
    space = " " * max(0, width - display_width(text))
    return space + text if right else text + space


def text_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Sequence[int] = (),
    width: int = WIDTH,
    colour: bool = False,
) -> str:
    """A table of cells with a rule under its head. `numeric`: columns set to the right. The widest columns give way."""
    table = [[reveal(cell, one_line=True) for cell in row] for row in [headers, *rows]]
    widths = _column_widths([[display_width(cell) for cell in row] for row in table], width)
    lines = [
        _GAP.join(
            _pad(fit(cell, w), w, right=i in numeric) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    rule = _GAP.join("─" * w for w in widths)
    head = paint(lines[0].rstrip(), "bold", enabled=colour)
    return "\n".join([head, paint(rule, "dim", enabled=colour), *(line.rstrip() for line in lines[1:])])


def _column_widths(cells: Sequence[Sequence[int]], width: int) -> list[int]:
    widths = [max(column) for column in zip(*cells, strict=True)]
    room = width - len(_GAP) * (len(widths) - 1)
    while sum(widths) > room and max(widths) > _MIN_COLUMN:
        widths[widths.index(max(widths))] -= 1
    return widths


def score_table(evaluation: EvaluationRecord, *, width: int = WIDTH, colour: bool = False) -> str:
    """Metrics of base and tuned model, as `peft evaluate` prints them; of a model that was scored alone, its own."""
    if not evaluation.base:
        own = [
            [metric_label(score.metric), score.value("tuned"), _between(score, score.tuned_interval)]
            for score in scores_of(evaluation)
        ]
        return text_table(["metric", "model", "95 %"], own, numeric=(1,), width=width, colour=colour)
    rows = [
        [
            metric_label(score.metric),
            score.value("base"),
            _between(score, score.base_interval),
            score.value("tuned"),
            _between(score, score.tuned_interval),
            score.change,
        ]
        for score in scores_of(evaluation)
    ]
    headers = ["metric", "base", "95 %", "tuned", "95 %", "change"]
    if not any(row[2] or row[4] for row in rows):
        rows = [[row[0], row[1], row[3], row[5]] for row in rows]
        return text_table(["metric", "base", "tuned", "change"], rows, numeric=(1, 2, 3), width=width, colour=colour)
    return text_table(headers, rows, numeric=(1, 3, 5), width=width, colour=colour)


def _between(score: Score, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    return "–".join(score.shown(end).removesuffix(" %") for end in interval)


def run_summary(run: RunFacts, *, width: int = WIDTH, colour: bool = False) -> str:
    """The verdict, the metrics and what to look at: what a command prints when a run ends."""
    checks = run_checks(run)
    verdict = judge(run.record, checks)
    head = paint(verdict.headline, _GRADES.get(verdict.grade, "yellow"), enabled=colour)
    lines = [head, *_wrapped([*verdict.sentences, verdict.basis], width)]
    if scores(run.record):
        lines += ["", score_table(run.record.evaluation, width=width, colour=colour)]
    lines += ["", *_wrapped([verdict.trust], width)]
    for check in checks:
        if check.outcome not in ("clear", "note"):
            word = paint(f"{check.outcome:>4}", _OUTCOMES[check.outcome], enabled=colour)
            first, *rest = _wrapped([f"{check.name}: {check.text}"], width - 6)
            lines += [f"{word}  {first}", *(f"      {line}" for line in rest)]
    return "\n".join(lines)


def run_ending(run: RunFacts, folder: str) -> str:
    """`run_summary`, then where everything lies and what one does next."""
    lines = [run_summary(run), "", f"run       {folder}", f"report    {folder}/report.html"]
    if run.record.adapter is not None:
        lines.append(f"adapter   {folder}/{run.record.adapter}")
        lines.append(f"next      peft generate {folder} --prompt '...' --base; peft merge {folder} --output merged")
    return "\n".join(lines)


def _wrapped(texts: Sequence[str], width: int) -> list[str]:
    lines: list[str] = []
    for text in texts:
        line = ""
        for word in reveal(text, one_line=True).split():
            candidate = f"{line} {word}" if line else word
            if line and display_width(candidate) > width:
                lines.append(line)
                candidate = word
            line = fit(candidate, width)
        if line:
            lines.append(line)
    return lines
