"""What the model answers here, and how another program's answers are held against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftcli.errors import CheckFailed
from peftcli.jobs.merge import PROMPTS
from peftcli.jobs.opening import OpenModel

NEW_TOKENS = 16
MORE_PROMPTS = (
    "Dear Sir or Madam,",
    "The three primary colours are",
    "SELECT name FROM customers WHERE",
    "My order has not arrived yet. What can I do?",
    "In the year 1848,",
    "Translate to French: good morning",
    "- eggs\n- milk\n-",
    "She opened the door and saw",
    "The capital of France is",
    "To be, or not to be",
    "http://www.example",
    "Summary:",
)
TEXTS = (*PROMPTS, *MORE_PROMPTS)
"""What every export is tried on: twenty beginnings of prose, letters, lists, code, numbers and questions."""
SLACK = {"f32": 1e-3, "f16": 5e-3, "bf16": 2e-2, "q8_0": 5e-2}
"""How far below the best logit another program's token may lie, as a share of the range of all logits, by the type of its
weights: what rounding moves. In float32 that of llama.cpp's activations, which it looks up in half precision."""


@dataclass(frozen=True)
class OwnAnswers:
    """Greedy continuations of each row of ids, with the adapter and without it."""

    rows: list[list[int]]
    tuned: list[list[int]]
    base: list[list[int]] | None
    """None of a whole model whose base is not known."""


def own_answers(opened: OpenModel, stops: Sequence[int]) -> OwnAnswers:
    """Answers to `TEXTS`, in the model's own type on its own device."""
    rows = [list(opened.tokenizer(text).input_ids) for text in TEXTS]
    rows = [row for row in rows if row]
    tuned = [_greedy(opened.model, row, stops) for row in rows]
    if not opened.has_base:
        return OwnAnswers(rows, tuned, None)
    with opened.as_base() as base:
        return OwnAnswers(rows, tuned, [_greedy(base, row, stops) for row in rows])


@torch.inference_mode()
def _greedy(model: nn.Module, row: Sequence[int], stops: Sequence[int]) -> list[int]:
    ids = torch.tensor([list(row)], device=next(model.parameters()).device)
    found: Tensor = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        eos_token_id=list(stops) or None,
        pad_token_id=0,
    )
    return [int(token) for token in found[0, len(row) :]]


def require_same(model: nn.Module, own: OwnAnswers, said: Sequence[Sequence[int]], slack: float, where: str) -> str:
    """A sentence on another program's answers.

    Answers are compared token by token up to the first that differs; that one must be as good as ours but for `slack`
    (see `SLACK`). Raises `CheckFailed` where one is not.
    """
    wrong, equal = [], 0
    for row, ours, theirs in zip(own.rows, own.tuned, said, strict=True):
        place = next((place for place, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        if place is None:
            equal += 1
        elif (short := _shortfall(model, [*row, *ours[:place]], theirs[place])) > slack:
            wrong.append(short)
    if wrong or not any(said):
        worst = (
            f"one of its tokens lies {max(wrong):.2g} of the logits' range below the best"
            if wrong
            else "it answered nothing"
        )
        raise CheckFailed(
            f"the other program answers otherwise in {len(wrong)} of {len(said)} cases: {worst}; nothing was written",
            where=where,
            fix="report this, with the base's name",
        )
    text = f"{equal} of {len(said)} greedy answers equal ours token by token"
    return text if equal == len(said) else f"{text}, the rest part at ties within rounding"


@torch.inference_mode()
def _shortfall(model: nn.Module, ids: Sequence[int], token: int) -> float:
    """How far a token's logit lies below the best one after these ids, as a share of the range of all logits."""
    logits: Tensor = model(input_ids=torch.tensor([list(ids)], device=next(model.parameters()).device)).logits[0, -1]
    return float((logits.max() - logits[token]) / (logits.max() - logits.min()).clamp(min=1e-30))


def differs_from_base(own: OwnAnswers, said: Sequence[Sequence[int]]) -> str:
    """Whether the answers show the adapter at all: a server that leaves it out answers as the base does.

    Raises `CheckFailed` where ours do and theirs do not.
    """
    if own.base is None:
        return ""
    ours = sum(tuned != base for tuned, base in zip(own.tuned, own.base, strict=True))
    theirs = sum(list(answer)[: len(base)] != base[: len(answer)] for answer, base in zip(said, own.base, strict=True))
    if ours == 0:
        return "; the base's greedy answers are the same, so they do not show the adapter"
    if theirs == 0:
        what = (
            f"the other program answers as the base does, where the adapter changes {ours} of {len(said)} answers here"
        )
        raise CheckFailed(f"{what}; nothing was written", fix="report this: the tool leaves the adapter out")
    return f"; {theirs} of them are not the base's"
