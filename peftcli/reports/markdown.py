"""`report.md`: the short form of a report, for pull requests.

Text from data stands in code spans and fences, where Markdown knows neither HTML, links, mentions nor headings; a span
or fence is always longer than any run of backticks in its text (CommonMark 0.31, sections 4.5 and 6.1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from peftcli.ownership import MARKDOWN_MARK
from peftcli.reports import numbers
from peftcli.reports.checks import Check, run_checks
from peftcli.reports.continued import continued_from
from peftcli.reports.folder import RunFacts
from peftcli.reports.record import EvaluationRecord, RunRecord, Sample
from peftcli.reports.scores import Score, metric_label, score_of, scores
from peftcli.reports.sections.samples import is_match
from peftcli.reports.verdict import judge
from peftcli.reports.visible import clipped, short_path

_MAX_INLINE = 160
_MAX_BLOCK = 600
_MAX_PROSE = 500
_SAMPLES = 3
_WARNINGS = 10
_TICKS = re.compile(r"`+")
_SPACE = re.compile(r"\s+")
_MARKS = {"bad": "❌", "warn": "⚠️", "note": "ℹ️", "clear": "✅"}


def code(text: str, limit: int = _MAX_INLINE) -> str:
    """Text from data as one code span, on one line."""
    held = _SPACE.sub(" ", clipped(text, limit)).strip()
    if not held:
        # a line break would end the span's row of a table
        return "` `"
    fence = "`" * (_longest_run(held) + 1)
    # CommonMark takes one space away on both sides; a backtick at an end would join the fence
    pad = " " if held.startswith("`") or held.endswith("`") else ""
    return f"{fence}{pad}{held}{pad}{fence}"


def block(text: str, limit: int = _MAX_BLOCK) -> str:
    """Text from data as a fenced block."""
    held = clipped(text, limit)
    fence = "`" * max(3, _longest_run(held) + 1)
    return f"{fence}text\n{held}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in _TICKS.findall(text)), default=0)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table; cells are Markdown already.

    A pipe in a cell is drawn broken: it would end the cell even inside a code span, and how an escape before it is read
    depends on the backslashes before that.
    """
    head, *body = ([cell.replace("|", "¦") for cell in row] for row in [headers, *rows])
    lines = [head, ["---"] * len(headers), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render_markdown(run: RunFacts) -> str:
    """The report of one run in about a screen of Markdown."""
    record = run.record
    checks = run_checks(run)
    verdict = judge(record, checks)
    parts = [
        f"## {code(run.name)}: {verdict.headline}",
        " ".join([*map(_prose, verdict.sentences), verdict.basis]).strip(),
        _failure(record),
        _metrics(scores(record)),
        _by_source(record.evaluation),
        _checks(verdict.trust, checks),
        _facts(record),
        _samples(record.samples),
        _warnings(record.warnings),
    ]
    return "\n\n".join(part for part in [*parts, MARKDOWN_MARK] if part) + "\n"


# `:` before a character makes emoji (`:x:`) and links (`http://`)
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$]|:(?=\S))")
_REFERENCES = str.maketrans({"@": "＠", "#": "＃"})  # GitHub makes links of names and numbers even where escaped


def _prose(text: str) -> str:
    """One line of our own words around names that are not ours: all punctuation of Markdown escaped.

    Links that GitHub makes by itself (`www.`, `http:`, e-mail, mentions) are broken.
    """
    escaped = _SPECIAL.sub(r"\\\1", _SPACE.sub(" ", clipped(text, _MAX_PROSE)))
    return escaped.translate(_REFERENCES).replace("www.", "www\\.")


def _failure(record: RunRecord) -> str:
    if record.failure is None:
        return ""
    name = code(record.failure.error)
    return f"**Why** ({name}, exit code {record.failure.exit_code}):\n\n{block(record.failure.message)}"


def _metrics(found: Sequence[Score]) -> str:
    if not found:
        return ""
    rows = [
        [
            code(score.metric.removeprefix("eval_")),
            _with_interval(score, "base"),
            _with_interval(score, "tuned"),
            f"{_prose(score.change)} ({score.relation})",
        ]
        for score in found
    ]
    return table(["Metric", "Base", "Tuned", "Change"], rows)


def _by_source(evaluation: EvaluationRecord) -> str:
    if not evaluation.sources:
        return ""
    rows = [
        [
            code(source.name),
            f"{source.rows:,}",
            code(metric_label(metric)),
            score_of(evaluation, metric).shown(source.base.get(metric)),
            score_of(evaluation, metric).shown(value),
        ]
        for source in evaluation.sources
        for metric, value in source.tuned.items()
    ]
    return table(["Source", "Rows", "Metric", "Base", "Tuned"], rows)


def _with_interval(score: Score, which: str) -> str:
    value = score.value("base") if which == "base" else score.value("tuned")
    interval = score.base_interval if which == "base" else score.tuned_interval
    if interval is None:
        return value
    low, high = (score.shown(end) for end in interval)
    return f"{value} ({low} to {high})"


def _checks(trust: str, checks: Sequence[Check]) -> str:
    shown = [check for check in checks if check.outcome != "clear"]
    lines = [f"- {_MARKS[check.outcome]} **{check.name}**: {_prose(check.text)}" for check in shown]
    return "\n".join([f"**Anything suspicious?** {trust}", *([""] if lines else []), *lines])


def _facts(record: RunRecord) -> str:
    parameters = record.parameters
    share = numbers.percent(parameters.trainable / parameters.total) if parameters.total else numbers.MISSING
    rows = [
        ["Method", code(record.method)],
        ["Base", code(short_path(record.base))],
        *([["Continued from", code(start)]] if (start := continued_from(record)) else []),
        ["Seed", str(record.seed)],
        ["Trained parameters", f"{numbers.count(parameters.trainable)} ({share})"],
        ["Steps, tokens", f"{numbers.count(record.steps)}, {numbers.count(record.tokens)}"],
        ["Training time", numbers.duration(record.seconds.training)],
        ["Throughput", f"{numbers.count(record.tokens_per_second)} tokens/s"],
        ["Peak memory", numbers.data_size(record.peak_memory_bytes or None)],
        ["Adapter", numbers.data_size(record.adapter_bytes or None)],
        ["peftcli", code(record.version)],
    ]
    return table(["Run", ""], rows)


def _samples(samples: Sequence[Sample]) -> str:
    parts = []
    for number, sample in enumerate(samples[:_SAMPLES], start=1):
        state = ""
        if sample.reference is not None and sample.tuned is not None:
            state = ", as the reference" if is_match(sample.reference, sample.tuned) else ", unlike the reference"
        texts = [("Prompt", sample.prompt), ("Reference", sample.reference), ("Base", sample.base)]
        texts.append(("Tuned", sample.tuned))
        body = "\n\n".join(f"{name}\n\n{block(text)}" for name, text in texts if text is not None)
        parts.append(f"<details><summary>Sample {number}{state}</summary>\n\n{body}\n\n</details>")
    # HTML around Markdown: GitHub reads what is between as Markdown only after an empty line
    return "\n\n".join(parts)


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    lines = [f"- {code(text, 400)}" for text in warnings[:_WARNINGS]]
    if len(warnings) > _WARNINGS:
        lines.append(f"- and {len(warnings) - _WARNINGS} more")
    return "\n".join(["**Warnings**", "", *lines])
