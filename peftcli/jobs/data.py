"""`peft data`: the very rows that training will see, and what the data doctor finds in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.data.doctor.base import Finding
from peftcli.jobs.showing import shown_rows
from peftcli.plan import Prepared, prepare_run
from peftcli.recipe import load_recipe
from peftcli.reports.data_text import findings_text, rows_text
from peftcli.reports.record import DataRow


@dataclass(frozen=True)
class Looked:
    """What was found."""

    prepared: Prepared
    rows: list[DataRow]
    findings: list[Finding]


def look_at_data(recipe: Path, overrides: Sequence[str], *, rows: int) -> Looked:
    """Prepares the data of a recipe as training would; findings that would stop a run are shown instead."""
    prepared = prepare_run(load_recipe(recipe, overrides))
    return Looked(prepared, shown_rows(prepared, rows), prepared.data.findings)


def data_document(looked: Looked) -> dict[str, Any]:
    """As JSON, token ids and weights included."""
    store = looked.prepared.data.train
    return {
        "facts": looked.prepared.data.facts.to_dict(),
        "rows": [
            {
                **row.model_dump(mode="json"),
                "input_ids": store[index].input_ids.tolist(),
                "weights": store[index].weights.tolist(),
            }
            for index, row in enumerate(looked.rows)
        ],
        "findings": [finding.to_dict() for finding in looked.findings],
    }


def data_text(looked: Looked) -> str:
    """As text, coloured on a terminal."""
    facts = looked.prepared.data.facts
    head = [
        f"train: {facts.train.rows:,} rows, {facts.train.tokens:,} tokens, {facts.train.trained_tokens:,} trained",
        f"lengths: {_quantiles(facts.train.quantiles)}",
    ]
    head += [f"{source.name}: {source.format} ({source.why})" for source in facts.train.sources]
    if facts.validation is not None:
        head.append(f"validation: {facts.validation.rows:,} rows, {facts.validation.tokens:,} tokens")
    return "\n".join([*head, "", rows_text(looked.rows), "", findings_text(looked.findings)])


def _quantiles(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in found.items())
