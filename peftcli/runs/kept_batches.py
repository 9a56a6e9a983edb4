"""The batches that broke a run's numbers, kept in RUN/data by the guards, read back for `peft data RUN/recipe.yaml`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peftcli import files
from peftcli.data.store import EncodedRow, Origin
from peftcli.errors import DataError
from peftcli.reports.data_text import rows_text
from peftcli.reports.record import DataRow
from peftcli.runs.own_files import BATCH_PREFIX
from peftcli.runs.showing import shown_row

# 256 MiB: far above any batch, and still not all of the memory
_LIMIT_BYTES = 256 << 20


@dataclass(frozen=True)
class KeptBatch:
    """A kept batch. `rows`: the first of its `num_rows` rows, as the model saw them."""

    step: int
    path: Path
    num_rows: int
    rows: list[DataRow]


def kept_batches(folder: Path, tokenizer: Any, *, rows: int) -> list[KeptBatch]:
    """The batches kept in a run folder, in the order of their steps; empty for any other folder.

    Raises `DataError` for a file that does not hold token ids of this tokenizer.
    """
    return [_read(path, tokenizer, rows) for path in sorted((folder / "data").glob(f"{BATCH_PREFIX}*.jsonl"))]


def _read(path: Path, tokenizer: Any, rows: int) -> KeptBatch:
    try:
        lines = [json.loads(line) for line in files.read_bounded(path, limit_bytes=_LIMIT_BYTES).splitlines()]
        encoded = [_encoded(line, len(tokenizer)) for line in lines[:rows]]
        step = int(path.stem.removeprefix(BATCH_PREFIX))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError("this kept batch is damaged", where=str(path), fix="remove the file") from error
    return KeptBatch(step, path, len(lines), [shown_row(row, tokenizer) for row in encoded])


def _encoded(line: dict[str, Any], vocabulary: int) -> EncodedRow:
    ids, weights = np.asarray(line["input_ids"], np.int32), np.asarray(line["weights"], np.float32)
    if ids.shape != weights.shape or ids.ndim != 1 or not len(ids) or ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError("no token ids of this tokenizer")
    return EncodedRow(ids, weights, Origin(0, str(line["file"]), int(line["line"])))


def kept_text(batches: Sequence[KeptBatch]) -> list[str]:
    """Each kept batch under the step that it broke."""
    return [
        f"{batch.path}: the batch of step {batch.step}, whose loss or gradient was not finite; "
        f"{len(batch.rows)} of its {batch.num_rows} rows\n\n{rows_text(batch.rows)}\n"
        for batch in batches
    ]


def kept_document(batches: Sequence[KeptBatch]) -> list[dict[str, Any]]:
    """As JSON."""
    return [
        {
            "step": batch.step,
            "file": str(batch.path),
            "num_rows": batch.num_rows,
            "rows": [row.model_dump(mode="json") for row in batch.rows],
        }
        for batch in batches
    ]
