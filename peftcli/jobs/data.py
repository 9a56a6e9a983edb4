"""`peft data`: the very rows that training will see, and what the data doctor finds in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftcli.data.doctor.base import Finding
from peftcli.data.facts import SourceFacts, SplitFacts
from peftcli.data.preview import SourceParts, read_parts, rows_are_trainable
from peftcli.planning.plan import Prepared, prepare_run
from peftcli.recipe import load_recipe
from peftcli.reports.data_text import findings_text, ids_text, rows_text
from peftcli.reports.record import DataRow, Span
from peftcli.runs.kept_batches import KeptBatch, kept_batches, kept_document, kept_text
from peftcli.runs.own_files import RECIPE_NAME, RECORD_NAME
from peftcli.runs.showing import shown_rows
from peftcli.visible import reveal

BAR_WIDTH = 40


@dataclass(frozen=True)
class DataPreview:
    """What was found. `prepared` is None, and `parts` filled, for data that no task of today trains on."""

    prepared: Prepared | None
    rows: list[DataRow]
    findings: list[Finding]
    parts: list[SourceParts] = field(default_factory=list)
    kept: list[KeptBatch] = field(default_factory=list)
    """Of a run's recipe: the batches that broke its numbers."""


def look_at_data(recipe: Path, overrides: Sequence[str], *, rows: int) -> DataPreview:
    """Prepares the data of a recipe as training would; findings that would stop a run are shown instead.

    Rows of a format that the task does not train on are read and checked, and shown by their parts.
    """
    loaded = load_recipe(recipe, overrides)
    if not rows_are_trainable(loaded.recipe.data, loaded.recipe.learns().formats, folder=loaded.folder):
        parts = read_parts(loaded.recipe.data, folder=loaded.folder, limit=rows)
        return DataPreview(None, _part_rows(parts), [finding for part in parts for finding in part.findings], parts)
    prepared = prepare_run(loaded)
    kept = kept_batches(loaded.folder, prepared.tokenizer, rows=rows) if _is_of_a_run(recipe) else []
    return DataPreview(prepared, shown_rows(prepared, rows), prepared.data.findings, kept=kept)


def _is_of_a_run(recipe: Path) -> bool:
    return recipe.name == RECIPE_NAME and (recipe.parent / RECORD_NAME).is_file()


def _part_rows(parts: Sequence[SourceParts]) -> list[DataRow]:
    return [
        DataRow(
            spans=[Span(text=span.text, kind=span.kind) for span in row.spans],
            origin=f"{row.origin.file}:{row.origin.line}",
        )
        for part in parts
        for row in part.rows
    ]


def data_document(preview: DataPreview) -> dict[str, Any]:
    """As JSON, token ids and weights included."""
    rows = [row.model_dump(mode="json") for row in preview.rows]
    if preview.prepared is None:
        facts: dict[str, Any] = {
            "sources": [{"format": part.format, "why": part.why, "rows_read": part.rows_read} for part in preview.parts]
        }
    else:
        store = preview.prepared.data.train
        facts = preview.prepared.data.facts.to_dict()
        # one by one: the store maps its arrays, and only the rows that are shown are read
        for index, row in enumerate(rows):
            row |= {"input_ids": store[index].input_ids.tolist(), "weights": (store[index].weights + 0.0).tolist()}
    document = {"facts": facts, "rows": rows, "findings": [finding.to_dict() for finding in preview.findings]}
    return document | ({"kept_batches": kept_document(preview.kept)} if preview.kept else {})


def data_text(preview: DataPreview, *, ids: bool = False) -> str:
    """As text, coloured on a terminal; with `ids` the token ids of each row under it. No foreign part is left that could
    drive a terminal."""
    if preview.prepared is None:
        head = [f"{part.format}: {part.rows_read:,} rows ({part.why})" for part in preview.parts]
        head.append("this task does not train on this format; the rows are read, checked and shown")
        return "\n".join([*map(reveal, head), "", rows_text(preview.rows), "", reveal(findings_text(preview.findings))])
    facts = preview.prepared.data.facts
    head = _split_text("train", facts.train)
    if facts.validation is not None:
        head += _split_text("validation", facts.validation)
    store = preview.prepared.data.train
    encoded = [store[number] for number in range(len(preview.rows))] if ids else []
    shown = [ids_text(row.input_ids.tolist(), row.weights.tolist()) for row in encoded]
    tail = [*kept_text(preview.kept), findings_text(preview.findings)]
    return "\n".join([*map(reveal, head), "", rows_text(preview.rows, shown), "", *map(reveal, tail)])


def _split_text(name: str, split: SplitFacts) -> list[str]:
    lines = [f"{name}: {split.rows:,} rows, {split.tokens:,} tokens, {split.trained_tokens:,} trained"]
    lines += [_source_text(source) for source in split.sources]
    lines += [f"  left out: {count:,} rows {reason}" for reason, count in split.dropped.items()]
    if split.tokens_lost:
        lines.append(
            f"  truncation removes {split.tokens_lost:,} tokens, {split.trained_tokens_lost:,} of them trained"
        )
    quantiles = ", ".join(f"{name} {value:g}" for name, value in split.quantiles.items())
    return [*lines, f"  lengths: {quantiles}", *_histogram(split.histogram)]


def _source_text(source: SourceFacts) -> str:
    lost = f", {source.tokens_lost:,} tokens lost" if source.tokens_lost else ""
    asked = f" of {source.asked:.1%} asked for" if source.asked is not None else ""
    share = f", {source.share:.1%} of the rows{asked}"
    return f"  {source.name}: {source.format} ({source.why}), {source.rows_kept:,} of {source.rows_read:,} rows{share}{lost}"


def _histogram(bins: Sequence[tuple[int, int, int]]) -> list[str]:
    most = max((rows for _, _, rows in bins), default=0)
    return [
        # rounded up, so that a bin with any row has a mark
        f"  {low:>7,} to {high - 1:>7,} {'#' * -(-rows * BAR_WIDTH // most)} {rows:,}"
        for low, high, rows in bins
        if rows
    ]
