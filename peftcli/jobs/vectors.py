"""`peft generate` for models that make one vector of a text: the tuned model's vectors, the base's beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.data.columns import filled_text
from peftcli.data.encode.base import EncodeSettings
from peftcli.data.encode.encoder import RowEncoder
from peftcli.data.faults import RowFault
from peftcli.data.rows import ContrastRow
from peftcli.data.tokens import TokenizerFacts
from peftcli.errors import DataError
from peftcli.evaluation.generate import context_length
from peftcli.evaluation.memory import memory_errors
from peftcli.jobs.generate import Request
from peftcli.jobs.opening import OpenModel
from peftcli.models.auto_class import FEATURES
from peftcli.models.base_config import sentence_folder
from peftcli.models.modes import evaluating
from peftcli.tasks.base import Batch, Task
from peftcli.tasks.registry import vector_task

_TEXTS = ("text", "prompt")
"""Names under which a row has its text."""


@dataclass(frozen=True)
class Embedded:
    """The vector of a text by the tuned model, and by the base where it was asked."""

    request: Request
    tuned: list[float]
    base: list[float] | None

    def to_dict(self) -> dict[str, Any]:
        """The input row with `embedding`, and `base_embedding` where there is one."""
        base = {} if self.base is None else {"base_embedding": self.base}
        return {**self.request.row, "embedding": self.tuned, **base}


def gives_vectors(opened: OpenModel) -> bool:
    """Whether a model answers with states, and neither with text nor with labels."""
    return opened.auto_class == FEATURES.auto_class


def embed_all(opened: OpenModel, requests: Sequence[Request], *, with_base: bool = False) -> list[Embedded]:
    """The vectors of texts, in their order, as sentence-transformers makes them. Raises `DataError` for rows that have no
    text, or too long a one."""
    task = vector_task(opened.auto_class).for_base(opened.location.adapter, sentence_folder(opened.source))
    texts = [_ids(task, opened, request) for request in requests]
    tuned = _vectors(task, opened.model, texts)
    base: Sequence[list[float] | None] = [None] * len(tuned)
    if with_base:
        with opened.as_base() as plain:
            base = _vectors(task, plain, texts)
    return [Embedded(*parts) for parts in zip(requests, tuned, base, strict=True)]


def _ids(task: Task, opened: OpenModel, request: Request) -> list[int]:
    encoder = RowEncoder(TokenizerFacts.of(opened.tokenizer), EncodeSettings(True, "completions"), task.encoding)
    name = next((name for name in _TEXTS if name in request.row), _TEXTS[0])
    try:
        row = ContrastRow((filled_text(request.row, name),))
    except RowFault as fault:
        raise DataError(fault.message, where=request.origin, fix=fault.fix) from fault
    found = encoder.encode([row], lambda _: request.origin)
    if found.refused:
        raise DataError("the tokenizer makes no token of the text", where=request.origin, fix="write another text")
    ids, limit = [int(token) for token in found.tokens()], context_length(opened.model)
    if limit is not None and len(ids) > limit:
        raise DataError(
            f"the text has {len(ids)} tokens, and the base reads {limit}", where=request.origin, fix="shorten the text"
        )
    return ids


def _vectors(task: Task, model: nn.Module, texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """One by one and unpadded, so that a vector does not depend on the others."""
    found = []
    with evaluating(model), memory_errors("embedding", "shorter texts"), torch.no_grad():
        for ids in texts:
            found.append(task.vectors(model, _alone(ids))[0].double().cpu().tolist())
    return found


def _alone(ids: Sequence[int]) -> Batch:
    row: Tensor = torch.tensor([ids])
    return {"input_ids": row, "attention_mask": torch.ones_like(row)}


def vectors_text(embedded: Sequence[Embedded]) -> str:
    """What `peft generate` prints: each vector as a JSON list on a line of its own, the base's above it where both are
    wanted."""
    lines = []
    for each in embedded:
        if each.base is not None:
            lines += [f"base:  {_shown(each.base)}", f"tuned: {_shown(each.tuned)}"]
        else:
            lines.append(_shown(each.tuned))
    return "\n".join(lines)


def _shown(vector: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in vector) + "]"
