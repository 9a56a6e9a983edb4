"""Prompts for generation, cut out of the rows that training and evaluation see."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from peftcli.data.asking import text_of
from peftcli.data.store import EncodedRow, Origin, TokenStore

MAX_TEXT_PROMPT = 64
TEXT_ANSWER = 64
"""Tokens to write where no row has a prompt of its own: a passage, not a document."""


@dataclass(frozen=True)
class Case:
    """`prompt_ids`, `reference_ids` (length,) int32; `reference_text`: what the row answers, without special tokens."""

    prompt_ids: np.ndarray
    prompt_text: str
    reference_ids: np.ndarray
    reference_text: str
    origin: Origin


@dataclass(frozen=True)
class Written:
    """Rows of a store, each as a prompt and one answer."""

    store: TokenStore
    written: Callable[[EncodedRow], EncodedRow]

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, row: int) -> EncodedRow:
        return self.written(self.store[row])


def generation_cases(store: TokenStore | Written, tokenizer: Any, limit: int) -> list[Case]:
    """A case for each of the first `limit` rows: the prompt is all before the last trained span, the reference is it.

    A row that is trained on whole (text) is cut in the middle, after at most 64 tokens.
    """
    return [_case(store[row], tokenizer) for row in range(min(limit, len(store)))]


def answer_budget(store: TokenStore | Written, rows: int | None = None) -> int:
    """New tokens that let a model write the longest answer of the first `rows` rows, and a quarter more.

    The quarter is for answers that are right and longer than the reference; what is longer still is counted as cut.
    """
    count = min(len(store), rows or len(store))
    spans = [last_span(store[row].weights) for row in range(count)]
    # documents have no prompt, and so no span after the first token: those rows say nothing about answers
    longest = max((end - start for start, end in spans if start > 1), default=0)
    return max(TEXT_ANSWER, longest + math.ceil(longest / 4)) if longest else TEXT_ANSWER


def _case(row: EncodedRow, tokenizer: Any) -> Case:
    start, end = last_span(row.weights)
    # position 0 is never a target, so a span that begins at 0 or 1 is the whole row
    if start <= 1:
        start = min(max(1, len(row.input_ids) // 2), MAX_TEXT_PROMPT)
        end = len(row.input_ids)
    prompt, reference = row.input_ids[:start], row.input_ids[start:end]
    return Case(
        prompt,
        text_of(tokenizer, prompt.tolist(), skip_special_tokens=False),
        reference,
        # without special tokens: the answer of a model is decoded that way, and both are compared
        text_of(tokenizer, reference.tolist(), skip_special_tokens=True),
        row.origin,
    )


def last_span(weights: np.ndarray) -> tuple[int, int]:
    """First and one-past-last position of the last answer, trained but for its thoughts; (0, 0) when there is none."""
    # a masked thought is the model's to write too
    trained = np.flatnonzero((weights > 0) | np.signbit(weights))
    if not trained.size:
        return 0, 0
    # a gap between trained positions ends a span: the last gap is where the last answer begins
    end = int(trained[-1]) + 1
    gaps = np.flatnonzero(np.diff(trained) > 1)
    return int(trained[gaps[-1] + 1] if gaps.size else trained[0]), end
