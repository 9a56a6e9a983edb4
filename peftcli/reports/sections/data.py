"""The data that training saw: counts, lengths, what was cut or dropped, a few rows as tokens, the doctor's findings."""

from __future__ import annotations

from peftcli.reports import numbers
from peftcli.reports.data_facts import SourceFacts, SplitFacts, split_facts
from peftcli.reports.folder import RunFacts
from peftcli.reports.markup import Child, Markup, tag
from peftcli.reports.plots.bars import histogram
from peftcli.reports.plots.frame import figure
from peftcli.reports.record import DataRow, FindingRecord, Span
from peftcli.reports.sections.parts import amount, details, facts_table, section, table
from peftcli.reports.visible import clipped, short_path

MAX_ROWS = 8
MAX_FINDINGS = 60
MAX_SOURCES = 40
_MAX_SPANS = 300
_MAX_CHARACTERS = 3000


def data_section(run: RunFacts) -> Markup | None:
    """None when nothing about the data was recorded."""
    record = run.record
    if not record.data and not record.rows and not run.findings:
        return None
    splits = [found for name in ("train", "validation") if (found := split_facts(record.data, name))]
    charts = [_lengths(split) for split in splits if split.histogram]
    everything = facts_table("Everything recorded about the data", record.data)
    return section(
        "data",
        "Data",
        _counts(splits) if splits else None,
        tag("div", charts, class_="charts") if charts else None,
        _sources(splits),
        _rows(record.rows),
        _findings(run.findings),
        details("All recorded facts about the data", everything) if everything else None,
        lead=_lead(record.trained_tokens, record.tokens),
    )


def _lead(trained: int, tokens: int) -> str | None:
    if not tokens:
        return None
    return f"Training passed {tokens:,} tokens; {numbers.percent(trained / tokens)} of them carried loss."


def _counts(splits: list[SplitFacts]) -> Markup:
    def line(label: str, *values: int | float | None) -> list[Child] | None:
        return None if all(value is None for value in values) else [label, *(_count(value) for value in values)]

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
    shown = [found for found in lines if found is not None]
    return table("Rows and tokens by split", ["", *(split.name for split in splits)], shown, numeric=True)


def _are_cut(splits: list[SplitFacts]) -> bool:
    """Whether documents were joined and cut, so that a row of tokens is not a row of a file."""
    return any(split.rows not in (None, split.rows_kept) for split in splits)


def _quantile_label(name: str) -> str:
    """`p90` -> `Length, 90 % are at most`."""
    known = {"min": "Shortest row", "p50": "Median length", "max": "Longest row", "mean": "Mean length"}
    if name in known:
        return known[name]
    return f"{name[1:]} % are at most" if name[:1] == "p" and name[1:].isdigit() else f"Length, {clipped(name, 40)}"


def _sources(splits: list[SplitFacts]) -> Markup | None:
    """Where the rows come from and how their format was found."""
    rows: list[list[Child]] = [
        [
            clipped(short_path(source.name), 120),
            split.name,
            clipped(source.format, 60),
            clipped(source.why, 200),
            _count(source.rows),
            _count(source.tokens),
            _share(source),
        ]
        for split in splits
        for source in split.sources[:MAX_SOURCES]
    ]
    headers = ["Source", "Split", "Format", "Why this format", "Rows", "Tokens", "Share"]
    return table("Sources", headers, rows) if rows else None


def _share(source: SourceFacts) -> str:
    asked = f" ({numbers.percent(source.asked)} asked)" if source.asked is not None else ""
    return f"{numbers.percent(source.share)}{asked}"


def _count(value: int | float | None) -> Markup:
    whole = value is None or value == int(value)
    return amount(value, numbers.count(value) if whole else numbers.plain(value, 3))


def _lengths(split: SplitFacts) -> Markup:
    total = sum(number for _, _, number in split.histogram)
    title = f"Row lengths, {split.name}"
    description = f"{total:,} rows by length in tokens, {len(split.histogram)} bins."
    return figure(title, histogram(f"lengths-{split.name}", title, description, split.histogram, "tokens"))


def _rows(rows: list[DataRow]) -> Markup | None:
    if not rows:
        return None
    legend = tag(
        "p",
        "What the model sees: ",
        tag("span", "context", class_="token context"),
        " ",
        tag("span", "trained", class_="token trained"),
        " ",
        tag("span", "special", class_="token special"),
        " ",
        tag("span", "special, trained", class_="token special trained"),
        class_="note marks",
    )
    return tag("div", tag("h3", "Rows as tokens"), legend, map(_row, rows[:MAX_ROWS]), class_="token-rows")


def _row(row: DataRow) -> Markup:
    counts = []
    if row.tokens is not None:
        counts.append(f"{row.tokens:,} tokens")
    if row.trained_tokens is not None:
        counts.append(f"{row.trained_tokens:,} trained")
    head = " · ".join([clipped(short_path(row.origin), 200), *counts] if row.origin else counts)
    body = tag("p", _spans(row.spans), class_="tokens", dir="auto")
    return tag("div", tag("p", head, class_="note") if head else None, body, class_="token-row")


def _spans(spans: list[Span]) -> list[Markup]:
    drawn, budget = [], _MAX_CHARACTERS
    for span in spans[:_MAX_SPANS]:
        if budget <= 0:
            break
        text = clipped(span.text, budget)
        budget -= len(text)
        trained = " trained" if span.kind == "special" and span.trained else ""
        drawn.append(tag("span", text, class_=f"token {span.kind}{trained}"))
    left = len(spans) - len(drawn)
    return [*drawn, tag("span", f" … {left:,} more spans", class_="note")] if left else drawn


def _findings(findings: list[FindingRecord]) -> Markup | None:
    if not findings:
        return None
    rows = [
        [
            finding.check.replace("_", " ")[:80],
            tag("span", finding.severity, class_=f"badge {finding.severity}"),
            tag("span", clipped(finding.message, 400), dir="auto"),
            f"{finding.count:,}",
            clipped(_where(finding), 200),
        ]
        for finding in findings[:MAX_FINDINGS]
    ]
    more = len(findings) - MAX_FINDINGS
    note = tag("p", f"{more:,} more are in data/findings.jsonl.", class_="note") if more > 0 else None
    headers = ["Check", "Severity", "What was found", "Rows", "First at"]
    return tag("div", table("Findings of the data doctor", headers, rows), note)


def _where(finding: FindingRecord) -> str:
    place = short_path(finding.file or "")
    return f"{place}:{finding.row}" if finding.row is not None else place
