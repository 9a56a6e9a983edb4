"""How models with a head of labels are asked: batches of framed texts, and the answer to a row wherever it stands."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftcli.data.parts import types
from peftcli.errors import ModelError
from peftcli.models.device import to_device
from peftcli.models.spelling import takes
from peftcli.tasks.base import Batch, TrainingRow


def framed(rows: Sequence[TrainingRow], *, pad_token_id: int) -> Batch:
    """`input_ids`, `attention_mask` and `token_type_ids` of rows, all (rows, longest) int64, padded on the right."""
    shape = (len(rows), max(len(row.input_ids) for row in rows))
    arrays = {name: np.zeros(shape, dtype=np.int64) for name in ("attention_mask", "token_type_ids")}
    arrays["input_ids"] = np.full(shape, pad_token_id, dtype=np.int64)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        arrays["input_ids"][index, :length] = row.input_ids
        arrays["attention_mask"][index, :length] = 1
        if len(row.parts):
            arrays["token_type_ids"][index, :length] = types(np.asarray(row.parts))
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The arguments of a forward pass, on the model's device; token types where the base has embeddings for them."""
    device = next(model.parameters()).device
    inputs: dict[str, Any] = {name: to_device(batch[name], device) for name in ("input_ids", "attention_mask")}
    kinds = batch.get("token_type_ids")
    known = getattr(model.config, "type_vocab_size", None) or 0
    if kinds is not None and known > 1 and takes(model, "token_type_ids"):
        inputs["token_type_ids"] = to_device(kinds.clamp(max=known - 1), device)
    if takes(model, "use_cache"):
        inputs["use_cache"] = False
    return inputs


def row_logits(model: nn.Module, batch: Batch) -> Tensor:
    """The answer to each row, (rows, labels), float32.

    A decoder judges every position, and transformers then looks for the last token that is no padding by its id: wrong
    where a row itself ends with that id. Here it is the last that the mask holds, on whichever side the padding stands.
    """
    inputs = model_inputs(model, batch)
    with _position_answers(model) as seen:
        output = model(**inputs)
    if not seen:
        return _of(output, model).float()
    answers, mask = seen[-1], inputs["attention_mask"]
    length = mask.shape[1]
    places = torch.arange(length, device=mask.device)
    last = (places * (mask > 0)).argmax(dim=1) + answers.shape[1] - length
    return answers[torch.arange(len(mask), device=mask.device), last].float()


def token_logits(model: nn.Module, batch: Batch) -> Tensor:
    """The answer to each token, (rows, length, labels)."""
    return _of(model(**model_inputs(model, batch)), model)


def _of(output: Any, model: nn.Module) -> Tensor:
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise ModelError(f"{type(model).__name__} gives no scores of labels", fix="choose a base of another family")
    return logits


@contextlib.contextmanager
def _position_answers(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, what heads outside the backbone say of every position, (rows, length, labels), is gathered."""
    labels = int(model.config.num_labels)  # type: ignore[union-attr, arg-type]
    backbone = getattr(model, "base_model", model)
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 3 and output.shape[-1] == labels:
            seen.append(output)

    handles = [child.register_forward_hook(look) for child in model.children() if child is not backbone]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
