"""What each step logged, as a checkpoint keeps it: `metrics.jsonl` is appended to and may lose or change lines.

A row of float64 holds the numbers of a step (counts are exact below 2^53), a row of int64 its digests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

StepLine = dict[str, Any]
"""What a train line holds beside event, step and loss."""
NUMBERS = ("learning_rate", "grad_norm", "tokens", "trained_tokens", "seconds")
_COUNTS = ("tokens", "trained_tokens")
_DIGESTS = {"batch": 12, "draws": 8}
"""Hex digits of each."""
_NAMES = ("history.numbers", "history.digests")
_NONE = -1


def history_tensors(lines: Sequence[StepLine | None]) -> dict[str, Tensor]:
    """(steps, 5) float64 and (steps, 2) int64; a step without a line is NaN and -1."""
    # the rate of a line is never NaN, so that NaN in its place marks a step without one
    numbers = [[math.nan if line is None else float(line[name]) for name in NUMBERS] for line in lines]
    # -1 is no digest: hex digits have no sign
    digests = [[int((line or {}).get(name) or "-1", 16) for name in _DIGESTS] for line in lines]
    tensors = (torch.tensor(numbers, dtype=torch.float64), torch.tensor(digests, dtype=torch.int64))
    widths = (len(NUMBERS), len(_DIGESTS))
    return {name: tensor.reshape(-1, width) for name, tensor, width in zip(_NAMES, tensors, widths, strict=True)}


def take_history(tensors: dict[str, Tensor], steps: int) -> list[StepLine | None]:
    """The inverse; takes its tensors out. A checkpoint of an older version has none: then no line is known."""
    found = [tensors.pop(name, None) for name in _NAMES]
    if any(tensor is None for tensor in found):
        # losses alone are known then, and `mend` compares no more than those
        return [None] * steps
    numbers, digests = (tensor.tolist() for tensor in found if tensor is not None)
    if not len(numbers) == len(digests) == steps:
        raise ValueError(f"the history is of {len(numbers)} steps, not {steps}")
    return [_line(row, marks) for row, marks in zip(numbers, digests, strict=True)]


def _line(numbers: Sequence[float], digests: Sequence[int]) -> StepLine | None:
    if math.isnan(numbers[0]):
        return None
    line: StepLine = dict(zip(NUMBERS, numbers, strict=True))
    line |= {name: int(line[name]) for name in _COUNTS}
    marks = zip(_DIGESTS.items(), digests, strict=True)
    return line | {name: f"{mark:0{width}x}" for (name, width), mark in marks if mark != _NONE}


def logged(
    losses: Sequence[float], lines: Sequence[StepLine | None], evaluations: Mapping[int, Mapping[str, float | None]]
) -> dict[tuple[str, int], StepLine]:
    """(event, step) -> what `metrics.jsonl` must say of it; of a step whose line is not known, its loss alone."""
    found: dict[tuple[str, int], StepLine] = {}
    for step, (loss, line) in enumerate(zip(losses, lines, strict=True), start=1):
        if math.isfinite(loss):
            found["train", step] = {"loss": loss, **(line or {})}
    return found | {("eval", step): dict(metrics) for step, metrics in evaluations.items()}
