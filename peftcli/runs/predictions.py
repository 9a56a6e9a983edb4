"""`predictions.jsonl`: what the tuned model says of each validation row, beside the truth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.data.store import TokenStore
from peftcli.evaluation.result import Evaluation
from peftcli.runs.own_files import PREDICTIONS_NAME
from peftcli.tasks.base import Task


def write_predictions(folder: Path, task: Task, tuned: Evaluation, store: TokenStore) -> None:
    """One line for each scored row: where it is, its labels, what the model says, and how sure it is.

    Nothing for a task without labels.
    """
    if tuned.labelled is None:
        return
    lines = (files.json_line(document) for document in _documents(task, tuned, store))
    files.write_text(folder / PREDICTIONS_NAME, "".join(lines))


def _documents(task: Task, tuned: Evaluation, store: TokenStore) -> Iterator[dict[str, Any]]:
    assert tuned.labelled is not None, "asked only where there is one"
    for number, said in enumerate(task.told(tuned.labelled)):
        origin, labels = store.origin(number), list(store.labels(number))
        target = labels[0] if len(labels) == 1 and not isinstance(said.label, list) else labels
        yield {
            "row": f"{origin.file}:{origin.line}",
            "target": target,
            "prediction": said.label,
            "scores": said.scores,
        }
