"""`peft generate` for models that give labels: what the tuned model says of rows, the base's answer beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from peftcli.data.encode.base import EncodeSettings
from peftcli.data.encode.encoder import RowEncoder
from peftcli.data.faults import RowFault
from peftcli.data.store import EncodedRow, Origin
from peftcli.data.tokens import TokenizerFacts
from peftcli.errors import AdapterError, DataError
from peftcli.evaluation.generate import context_length
from peftcli.evaluation.memory import memory_errors
from peftcli.jobs.generate import Request
from peftcli.jobs.opening import OpenModel
from peftcli.models.auto_class import LABELLING
from peftcli.models.heads import LabelHead
from peftcli.models.modes import evaluating
from peftcli.runs.writing_notes import CHAT, read_notes
from peftcli.tasks.base import Task
from peftcli.tasks.labels.answers import Prediction
from peftcli.tasks.registry import labelling_task

BATCH_ROWS = 16


@dataclass(frozen=True)
class Predicted:
    """What the tuned model says of a row, and the base where it was asked."""

    request: Request
    tuned: Prediction
    base: Prediction | None

    def to_dict(self) -> dict[str, Any]:
        """The input row with `prediction` and `scores`, and `base_prediction` where there is one."""
        base = {} if self.base is None else {"base_prediction": self.base.label}
        return {**self.request.row, "prediction": self.tuned.label, "scores": self.tuned.scores, **base}


def gives_labels(opened: OpenModel) -> bool:
    """Whether a model answers with labels, and not with text."""
    return opened.auto_class in LABELLING


def predict_all(opened: OpenModel, requests: Sequence[Request], *, with_base: bool = False) -> list[Predicted]:
    """The labels of rows, in their order. Raises `DataError` for rows that cannot be read or are too long."""
    task = labelling_task(opened.auto_class).with_head(LabelHead.of_config(opened.model.config))
    _require_read_alone(opened, task)
    rows = _encoded(task, opened, requests)
    pad = int(opened.tokenizer.pad_token_id or 0)
    tuned = _predictions(task, opened.model, rows, pad)
    base: Sequence[Prediction | None] = [None] * len(tuned)
    if with_base:
        with opened.as_base() as plain:
            base = _predictions(task, plain, rows, pad)
    return [Predicted(*parts) for parts in zip(requests, tuned, base, strict=True)]


def _require_read_alone(opened: OpenModel, task: Task) -> None:
    """Raises `AdapterError` for a model that was trained on conversations, or by another task, as one that grants rewards
    is: a text in the tokenizer's own frame is not what it reads, and its number would mean nothing."""
    folder = opened.location.adapter
    if read_notes(folder).prompt == CHAT or opened.location.record.get("task") not in (None, task.name):
        raise AdapterError(
            "this model judges answers to prompts, and was not trained to read a text alone",
            where=str(folder),
            fix="`peft evaluate` scores its rows; or merge it, and give it whole templated conversations in transformers",
        )


def _encoded(task: Task, opened: OpenModel, requests: Sequence[Request]) -> list[EncodedRow]:
    encoder = RowEncoder(TokenizerFacts.of(opened.tokenizer), EncodeSettings(True, "completions"), task.encoding)
    rows = []
    for request in requests:
        try:
            row = task.unlabelled(_texts(request.row))
        except RowFault as fault:
            raise DataError(fault.message, where=request.origin, fix=fault.fix) from fault
        found = encoder.encode([row], lambda _, origin=request.origin: origin)  # type: ignore[misc]
        if found.refused:
            raise DataError(found.refused[0][0], where=request.origin, fix="write another text")
        encoded = EncodedRow(found.tokens(), found.weights(), Origin(0, request.origin, 1), np.array(found.parts))
        rows.append(_within(encoded, task, context_length(opened.model)))
    return rows


def _texts(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A prompt of the command line is a text."""
    return row if "prompt" not in row or "text" in row else {**row, "text": row["prompt"]}


def _within(row: EncodedRow, task: Task, limit: int | None) -> EncodedRow:
    if limit is not None and len(row.input_ids) > limit:
        raise DataError(
            f"the row has {len(row.input_ids)} tokens, and the base reads {limit}",
            where=row.origin.file, fix="shorten the text",
        )  # fmt: skip
    return row


def _predictions(task: Task, model: nn.Module, rows: Sequence[EncodedRow], pad: int) -> list[Prediction]:
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number].input_ids))
    found: dict[int, Prediction] = {}
    with evaluating(model), memory_errors("predicting", "shorter rows"):
        for start in range(0, len(order), BATCH_ROWS):
            chosen = order[start : start + BATCH_ROWS]
            batch = task.collate([rows[number] for number in chosen], pad_token_id=pad)
            found.update(zip(chosen, task.predictions(model, batch), strict=True))
    return [found[number] for number in range(len(rows))]


def predictions_text(predicted: Sequence[Predicted]) -> str:
    """What `peft generate` prints: the label of each row with its score, the base's above it where both are wanted."""
    blocks = []
    for each in predicted:
        lines = [each.tuned.text] if each.base is None else [f"base:  {each.base.text}", f"tuned: {each.tuned.text}"]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) if any(each.base for each in predicted) else "\n".join(blocks)
