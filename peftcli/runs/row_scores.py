"""`data/scores.safetensors`: what every validation row scored, base and tuned, so that runs are compared row by row later.

A metric's own additive numbers are kept (see `Table`), under `base/eval_loss` and `tuned/eval_loss`, each (rows, k) in
float64; `sources` is the number of each row's source.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from peftcli import files
from peftcli.errors import DataError, RecipeError
from peftcli.evaluation.evaluate import Evaluation
from peftcli.evaluation.registry import get_metric
from peftcli.evaluation.result import Table
from peftcli.runs.own_files import SCORES_NAME

_SOURCES = "sources"
_LIMIT_BYTES = 1 << 30


def write_row_scores(folder: Path, base: Evaluation | None, tuned: Evaluation | None) -> None:
    """Writes the file into a run folder; nothing where there were no validation rows."""
    found: dict[str, np.ndarray] = {}
    for side, evaluation in (("base", base), ("tuned", tuned)):
        for name, table in (evaluation.tables if evaluation is not None else {}).items():
            found[f"{side}/{name}"] = np.ascontiguousarray(table.numbers, dtype=np.float64)
            found[_SOURCES] = np.ascontiguousarray(table.sources, dtype=np.int64)
    if found:
        files.write_bytes(folder / "data" / SCORES_NAME, save(found))


def read_row_scores(folder: Path, side: str) -> dict[str, Table]:
    """Metric -> table of `base` or `tuned`; empty where a run has none. Raises `DataError` for a damaged file."""
    path = folder / "data" / SCORES_NAME
    if not path.is_file():
        return {}
    try:
        found = load(files.read_bounded(path, limit_bytes=_LIMIT_BYTES))
        sources = found.pop(_SOURCES)
        return {
            key.partition("/")[2]: Table(get_metric(key.partition("/")[2]), numbers, sources)
            for key, numbers in found.items()
            if key.startswith(f"{side}/")
        }
    except (SafetensorError, KeyError, RecipeError) as error:
        raise DataError("the scores of the rows are damaged", where=str(path), fix="train again") from error
