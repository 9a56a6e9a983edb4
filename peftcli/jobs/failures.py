"""Where a finished run's model fails, from what its folder holds; the texts of the rows where their files are still here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from peftcli import files
from peftcli.errors import PeftcliError
from peftcli.evaluation.result import Table
from peftcli.planning.plan import Prepared, prepare_run
from peftcli.recipe import load_recipe
from peftcli.reports.failures import Failures, WorstRow, class_scores
from peftcli.runs.own_files import PREDICTIONS_NAME, RECIPE_NAME
from peftcli.runs.row_scores import read_row_scores

WORST = 10
"""Rows that are shown."""
_LOSS = "eval_loss"
_LIMIT_BYTES = 256 << 20


def find_failures(run: Path) -> Failures:
    """The worst rows by the tuned model's loss a token, and each label's share of right ones. Raises `DataError` for damaged
    scores."""
    losses = _row_losses(read_row_scores(run, "tuned").get(_LOSS))
    base = _row_losses(read_row_scores(run, "base").get(_LOSS))
    order = [int(row) for row in np.argsort(-losses, kind="stable")[:WORST] if np.isfinite(losses[row])]
    prepared, note = _prepared(run) if order else (None, None)
    worst = [
        WorstRow(place, float(losses[row]), float(base[row]) if len(base) > row else None, text)
        for row in order
        for place, text in [_shown(prepared, row)]
    ]
    return Failures(worst, class_scores(_said(run / PREDICTIONS_NAME)), note)


def _row_losses(table: Table | None) -> np.ndarray:
    """Loss of a token of each row; -inf where a row carries no loss."""
    if table is None:
        return np.zeros(0)
    total, weight = table.numbers[:, 0], table.numbers[:, 1]
    return np.where(weight > 0, total / np.maximum(weight, 1e-30), -np.inf)


def _prepared(run: Path) -> tuple[Prepared | None, str | None]:
    try:
        return prepare_run(load_recipe(run / RECIPE_NAME)), None
    except PeftcliError as error:
        return None, f"the texts of the rows are not shown: {error.message}"


def _shown(prepared: Prepared | None, row: int) -> tuple[str, str | None]:
    """Place and text of a held-out row."""
    store = None if prepared is None else prepared.data.validation
    if prepared is None or store is None or row >= len(store):
        return f"held-out row {row + 1}", None
    origin = store.origin(row)
    text = prepared.tokenizer.decode(store[row].input_ids.tolist(), skip_special_tokens=False)
    return f"{origin.file}:{origin.line}", str(text)


def _said(path: Path) -> Iterator[tuple[str, str]]:
    """(truth, prediction) of every label in `predictions.jsonl`."""
    if not path.is_file():
        return
    for line in files.read_bounded(path, limit_bytes=_LIMIT_BYTES).splitlines():
        document = json.loads(line)
        truth, told = document["target"], document["prediction"]
        pairs = (
            zip(truth, told, strict=False) if isinstance(truth, list) and isinstance(told, list) else [(truth, told)]
        )
        yield from ((str(one), str(other)) for one, other in pairs)
