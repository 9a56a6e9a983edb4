"""How the members do on parts of the rows: each class, where rows are labelled, and each source, where there are several."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.compare.figures import Variant, tables_of
from peftcli.compare.session import Ended
from peftcli.evaluation.result import Table
from peftcli.reports import numbers
from peftcli.reports.metric_facts import MetricFacts
from peftcli.reports.sections.parts import Section
from peftcli.reports.sections.row_parts import PartColumn, PartRow, RowPartsTable
from peftcli.runs.own_files import PREDICTIONS_NAME

MAX_CLASSES = 12
"""Of the most frequent ones; a page of hundreds says nothing."""
_LIMIT_BYTES = 1 << 30
_OUTSIDE = "O"
"""The tag of a word that is nothing: of no interest by itself."""


def class_section(variants: Sequence[Variant], styles: Mapping[str, str]) -> Section | None:
    """F1 by class, in means over seeds; None where the rows have no classes."""
    counts = {variant.name: [_counts(ended) for ended in variant.members] for variant in variants}
    first = next((found for seeds in counts.values() for found in seeds), {})
    # right and missed together are how often a class is the truth
    frequent = sorted(first, key=lambda label: -(first[label]["right"] + first[label]["missed"]))[:MAX_CLASSES]
    if len(first) < 2:
        return None
    columns = [PartColumn(label, first[label]["right"] + first[label]["missed"]) for label in frequent]
    rows = [
        PartRow(styles[variant.name], variant.name, [_mean_f1(counts[variant.name], label) for label in frequent])
        for variant in variants
    ]
    lead = "F1 of each class, the most frequent first; means over seeds." + _left_out(len(first) - len(frequent))
    return _section("classes", "By class", lead, columns, rows, lambda value: f"{value:.2f}", higher=True)


def _left_out(count: int) -> str:
    return f" {count} rarer ones are left out." if count > 0 else ""


def _mean_f1(seeds: Sequence[Mapping[str, Counter[str]]], label: str) -> float:
    found = [_f1(counts.get(label, Counter())) for counts in seeds]
    return sum(found) / len(found)


def _f1(counts: Counter[str]) -> float:
    # 2 P R / (P + R), multiplied out: no division by a precision or recall of zero
    asked = 2 * counts["right"] + counts["missed"] + counts["wrong"]
    return 2 * counts["right"] / asked if asked else 0.0


def _counts(ended: Ended) -> dict[str, Counter[str]]:
    """Class -> how often it was said rightly (`right`), said wrongly (`wrong`) and not said where it is (`missed`)."""
    found: dict[str, Counter[str]] = {}
    chosen = None if ended.final is None else set(ended.final.tolist())
    for number, line in enumerate(_lines(ended.run)):
        if chosen is not None and number not in chosen:
            continue
        for truth, said in _pairs(line["target"], line["prediction"], line["scores"]):
            if truth is not None:
                found.setdefault(truth, Counter())["right" if truth == said else "missed"] += 1
            if said is not None and said != truth:
                found.setdefault(said, Counter())["wrong"] += 1
    # most words are outside: their class would hide all others
    return {label: counts for label, counts in found.items() if label != _OUTSIDE}


def _lines(run: Path) -> list[Any]:
    path = run / PREDICTIONS_NAME
    if not path.is_file():
        return []
    text = files.read_bounded(path, limit_bytes=_LIMIT_BYTES).decode("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _pairs(target: Any, said: Any, scores: Any) -> Iterator[tuple[str | None, str | None]]:
    """(truth, answer) of a row with one label, of each word of a row, or of each label that applies or is said."""
    if isinstance(scores, list):
        # of words: a row that was cut has fewer answers than tags
        yield from zip(map(str, target), map(str, said), strict=False)
    elif isinstance(scores, dict) and isinstance(said, list):
        truth = [str(label) for label in (target if isinstance(target, list) else [target])]
        for label in dict.fromkeys([*truth, *said]):
            yield label if label in truth else None, label if label in said else None
    elif isinstance(scores, dict) and str(target) in scores:
        yield str(target), said


def source_section(
    variants: Sequence[Variant], styles: Mapping[str, str], metric: str, facts: MetricFacts
) -> Section | None:
    """The headline metric by source, in means over seeds; None where all rows are of one."""
    record = next((record for variant in variants for record in variant.records), None)
    names = [source.name for source in record.evaluation.sources] if record is not None else []
    tables = {
        variant.name: [tables_of(ended, "tuned").get(metric) for ended in variant.members] for variant in variants
    }
    known = [table for seeds in tables.values() for table in seeds if table is not None]
    if len(names) < 2 or not known:
        return None
    numbers_of = sorted({int(source) for table in known for source in set(table.sources.tolist())})[: len(names)]
    columns = [PartColumn(names[at], int((known[0].sources == source).sum())) for at, source in enumerate(numbers_of)]
    rows = [
        PartRow(styles[name], name, [_mean_of_source(seeds, source) for source in numbers_of])
        for name, seeds in tables.items()
    ]
    shown = partial(numbers.metric_value, facts)
    lead = "The headline metric on the rows of each source; means over seeds."
    return _section("sources", "By source", lead, columns, rows, shown, higher=facts.better == "higher")


def _mean_of_source(tables: Sequence[Table | None], source: int) -> float | None:
    found = [part.value() for table in tables if table is not None and len((part := table.of_source(source)).numbers)]
    return sum(found) / len(found) if found else None


def _section(
    slug: str, title: str, lead: str, columns: list[PartColumn], rows: list[PartRow], shown: Any, *, higher: bool
) -> Section:
    return Section(
        slug, title, "comparison/row_parts.jinja", RowPartsTable.of(title, columns, rows, shown, higher), lead
    )
