"""The data that training saw: counts, lengths, what was cut or dropped, a few rows as tokens, the doctor's findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftcli.reports import numbers
from peftcli.reports.data_facts import SourceFacts, SplitFacts, split_facts
from peftcli.reports.folder import RunFacts
from peftcli.reports.plots.bars import histogram
from peftcli.reports.plots.frame import Figure
from peftcli.reports.record import DataRow, FindingRecord, Span
from peftcli.reports.sections.parts import Amount, FactsTable, Section, facts_table
from peftcli.reports.visible import clipped, short_path

MAX_ROWS = 8
MAX_FINDINGS = 60
MAX_SOURCES = 40
"""Sources that a page shows one by one."""
_MAX_SPANS = 300
_MAX_CHARACTERS = 3000


@dataclass(frozen=True)
class SourceRow:
    """One source of one split."""

    name: str
    split: str
    format: str
    why: str
    rows: Amount
    tokens: Amount
    share: str


@dataclass(frozen=True)
class TokenRow:
    """A row as the model sees it: pieces of text with their style. `more`: how many pieces were left out."""

    head: str
    spans: list[tuple[str, str]]
    more: str | None


@dataclass(frozen=True)
class FindingRow:
    """One finding of the data doctor. `rows`: how many it is about, `where`: the first of them."""

    check: str
    severity: str
    message: str
    rows: str
    where: str


@dataclass(frozen=True)
class DataView:
    """What is said about the data. `counts`: a label and one number for each split."""

    splits: list[str]
    counts: list[tuple[str, list[Amount]]]
    lengths: list[Figure]
    sources: list[SourceRow]
    rows: list[TokenRow]
    findings: list[FindingRow]
    more_findings: str | None
    everything: FactsTable | None
    kinds: tuple[str, ...] = ("context", "trained", "special", "special trained")


def data_section(run: RunFacts) -> Section | None:
    """None when nothing about the data was recorded."""
    record = run.record
    if not record.data and not record.rows and not run.findings:
        return None
    splits = [facts for name in ("train", "validation") if (facts := split_facts(record.data, name))]
    left = len(run.findings) - MAX_FINDINGS
    view = DataView(
        splits=[split.name for split in splits],
        counts=_counts(splits),
        lengths=[_lengths(split) for split in splits if split.histogram],
        sources=_sources(splits),
        rows=[_row(row) for row in record.rows[:MAX_ROWS]],
        findings=[_finding(finding) for finding in run.findings[:MAX_FINDINGS]],
        more_findings=f"{left:,}" if left > 0 else None,
        everything=facts_table("Everything recorded about the data", record.data),
    )
    lead = " ".join(filter(None, (_lead(record.trained_tokens, record.tokens), _padding(record.plan))))
    return Section("data", "Data", "report/data.jinja", view, lead)


def _lead(trained: int, tokens: int) -> str:
    if not tokens:
        return ""
    return f"Training passed {tokens:,} tokens; {numbers.percent(trained / tokens)} of them carried loss."


def _padding(plan: Mapping[str, Any]) -> str:
    """What of the passes was padding, and what it would have been had rows not been packed."""
    found = plan.get("padding")
    shares = found if isinstance(found, Mapping) else {}
    unpacked, packed = (shares.get(name) for name in ("unpacked", "packed"))
    if not isinstance(unpacked, float):
        return ""
    if not isinstance(packed, float):
        return f"Padding was planned to be {numbers.percent(unpacked)} of what the passes compute."
    return (
        f"Rows were packed: padding was planned to be {numbers.percent(packed)} of what the passes compute, "
        f"{numbers.percent(unpacked)} unpacked."
    )


def _counts(splits: list[SplitFacts]) -> list[tuple[str, list[Amount]]]:
    def line(label: str, *values: int | float | None) -> tuple[str, list[Amount]] | None:
        return None if all(value is None for value in values) else (label, [_count(value) for value in values])

    lines = [
        line("Rows read", *(split.rows_read for split in splits)),
        line("Rows kept", *(split.rows_kept for split in splits)),
        line("Rows as trained", *(split.rows for split in splits)) if _are_cut(splits) else None,
        *(
            line(f"Dropped: {clipped(reason, 80)}", *(split.dropped.get(reason, 0) for split in splits))
            for reason in dict.fromkeys(reason for split in splits for reason in split.dropped)
        ),
        line("Tokens", *(split.tokens for split in splits)),
        line("Trained tokens", *(split.trained_tokens for split in splits)),
        line("Tokens lost with dropped or cut rows", *(split.tokens_lost for split in splits)),
        *(
            line(_quantile_label(name), *(split.quantiles.get(name) for split in splits))
            for name in dict.fromkeys(name for split in splits for name in split.quantiles)
        ),
    ]
    return [told for told in lines if told is not None]


def _are_cut(splits: list[SplitFacts]) -> bool:
    """Whether documents were joined and cut, so that a row of tokens is not a row of a file."""
    # None: an older record, which does not say
    return any(split.rows not in (None, split.rows_kept) for split in splits)


def _quantile_label(name: str) -> str:
    """`p90` -> `Length, 90 % are at most`."""
    known = {"min": "Shortest row", "p50": "Median length", "max": "Longest row", "mean": "Mean length"}
    if name in known:
        return known[name]
    return f"{name[1:]} % are at most" if name[:1] == "p" and name[1:].isdigit() else f"Length, {clipped(name, 40)}"


def _sources(splits: list[SplitFacts]) -> list[SourceRow]:
    """Where the rows come from and how their format was found."""
    return [
        SourceRow(
            clipped(short_path(source.name), 120),
            split.name,
            clipped(source.format, 60),
            clipped(source.why, 200),
            _count(source.rows),
            _count(source.tokens),
            _share(source),
        )
        for split in splits
        for source in split.sources[:MAX_SOURCES]
    ]


def _share(source: SourceFacts) -> str:
    asked = f" ({numbers.percent(source.asked)} asked)" if source.asked is not None else ""
    return f"{numbers.percent(source.share)}{asked}"


def _count(value: int | float | None) -> Amount:
    whole = value is None or value == int(value)
    return Amount(value, numbers.count(value) if whole else numbers.plain(value, 3))


def _lengths(split: SplitFacts) -> Figure:
    total = sum(number for _, _, number in split.histogram)
    title = f"Row lengths, {split.name}"
    description = f"{total:,} rows by length in tokens, {len(split.histogram)} bins."
    return Figure(title, histogram(f"lengths-{split.name}", title, description, split.histogram, "tokens"))


def _row(row: DataRow) -> TokenRow:
    counts = []
    if row.tokens is not None:
        counts.append(f"{row.tokens:,} tokens")
    if row.trained_tokens is not None:
        counts.append(f"{row.trained_tokens:,} trained")
    head = " · ".join([clipped(short_path(row.origin), 200), *counts] if row.origin else counts)
    spans = _spans(row.spans)
    left = len(row.spans) - len(spans)
    return TokenRow(head, spans, f"{left:,}" if left else None)


def _spans(spans: list[Span]) -> list[tuple[str, str]]:
    """Style and text of the first spans, as far as there is room for them."""
    shown, budget = [], _MAX_CHARACTERS
    for span in spans[:_MAX_SPANS]:
        if budget <= 0:
            break
        text = clipped(span.text, budget)
        # characters as shown, so that hidden ones written out cannot swell the page
        budget -= len(text)
        trained = " trained" if span.kind == "special" and span.trained else ""
        shown.append((f"{span.kind}{trained}", text))
    return shown


def _finding(finding: FindingRecord) -> FindingRow:
    return FindingRow(
        finding.check.replace("_", " ")[:80],
        finding.severity,
        clipped(finding.message, 400),
        f"{finding.count:,}",
        clipped(_where(finding), 200),
    )


def _where(finding: FindingRecord) -> str:
    place = short_path(finding.file or "")
    return f"{place}:{finding.row}" if finding.row is not None else place
