"""Answers of two models to the same prompts, in arithmetic fine enough to tell a merge from its rounding."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.errors import CheckFailed, Fault
from peftcli.jobs.merge_witness import in_float64
from peftcli.models.calling import class_scores, token_inputs
from peftcli.models.structure import structure

FLOOR = 1e-5
"""Of the largest logit, or of 1: what logits may differ by where weights differ by the rounding of float32."""
NOISE_FACTOR = 3.0
"""Logits may differ by this many times what random rounding of the merged weights themselves does to them."""
MEASURABLE = {torch.float64: 1e-5, torch.float32: 1e-4}
"""Of the largest logit, or of 1: an effect below is lost in the arithmetic of the comparison."""


@dataclass(frozen=True)
class Answers:
    """What the model with its adapter on says before the merge, and the base."""

    rows: list[Tensor]
    unmet: list[str]
    precise: bool
    expected: list[Tensor]
    plain: list[Tensor]
    blocks: dict[str, Tensor]


@dataclass(frozen=True)
class Reread:
    """What the written folder says to the same prompts."""

    found: list[Tensor]
    ground: Sequence[Tensor]
    """Of the base in the types of the folder: what remains once the adapter is taken out of it again."""
    shaken: list[Tensor]
    """Once the weights that were rounded are moved by as much again, at random."""
    blocks: dict[str, Tensor]


def can_compute_in_float64(model: nn.Module, row: Tensor) -> bool:
    """Whether the model's forward runs in float64: grouped products of experts have none, and some families mix in
    tables of float32."""
    try:
        with in_float64(model), torch.no_grad():
            model(**token_inputs(model, row))
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return True


def logits_of(model: nn.Module, rows: Sequence[Tensor]) -> list[Tensor]:
    """Float32 scores of each row on the CPU, (positions, classes): one position for a classifier of whole texts."""
    # row by row and unpadded: nothing but the weights differs between the two models
    with torch.no_grad():
        return [class_scores(model(**token_inputs(model, row))).float().cpu() for row in rows]


def require_finite(logits: Sequence[Tensor], whose: str, plain: Sequence[Tensor] | None = None) -> None:
    """Raises `CheckFailed` for a logit that is not finite in any row, but where the base's own is minus infinity (tokens
    that a family rules out)."""
    wrong = []
    for index, row in enumerate(logits):
        allowed = torch.zeros_like(row, dtype=torch.bool) if plain is None else _ruled_out(row, plain[index])
        if not bool((torch.isfinite(row) | allowed).all()):
            wrong.append(index + 1)
    if wrong:
        fault = Fault(
            f"the merge could not be proven: logits of {whose} are not finite"
            f" on {len(wrong)} of {len(logits)} prompts (prompt {wrong[0]} first)",
            fix="merge with --dtype float32 or bfloat16; if that fails too, the adapter or the base is broken",
        )
        raise CheckFailed("the merge could not be proven", faults=[fault])


def _ruled_out(row: Tensor, plain: Tensor) -> Tensor:
    return torch.isneginf(row) & torch.isneginf(plain)


def max_difference(one: Sequence[Tensor], other: Sequence[Tensor], share: float = 1.0) -> float:
    """Largest absolute difference at this share of the positions, the nearest first; infinite where one is not a number."""
    found = []
    for a, b in zip(one, other, strict=True):
        # equal infinities are no difference
        # minus infinity minus itself would be NaN
        difference = torch.where(a == b, torch.zeros_like(a), (a - b).abs())
        found.append(difference.nan_to_num(float("inf"), float("inf"), float("inf")).amax(-1).flatten())
    every = torch.cat(found).sort().values
    # rounded up: at a share of 1 it is the last, which is the largest
    return float(every[math.ceil(share * len(every)) - 1])


def agreement(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Share of positions with the same most likely class."""
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(one, other, strict=True))
    return same / sum(len(a) for a in one)


def scale_of(logits: Sequence[Tensor]) -> float:
    """The largest finite logit in absolute value, at least 1."""
    return max(1.0, *(float(row[torch.isfinite(row)].abs().max()) for row in logits if torch.isfinite(row).any()))


def surviving_share(
    expected: Sequence[Tensor], plain: Sequence[Tensor], found: Sequence[Tensor], ground: Sequence[Tensor], least: float
) -> float | None:
    """Share of the adapter's effect on the logits that a merged model has, the weighted median over positions.

    The effect is `expected - plain`, what is left of it `found - ground`. A median, since a router that decides
    otherwise on one token says nothing of the weights. 1 - |1 - share|; None where the effect is below `least`.
    """
    effect, left = _differences(expected, plain), _differences(found, ground)
    if not len(effect) or float(effect.abs().max()) < least:
        # weighted by the square of the effect: positions that the adapter hardly moves have a share of noise
        return None
    sizes = effect.square().sum(1)
    shares = (effect * left).sum(1) / sizes.clamp_min(1e-300)
    order = shares.argsort()
    reached = sizes[order].cumsum(0) >= 0.5 * sizes.sum()
    share = float(shares[order][reached.nonzero()[0, 0]])
    return 1.0 - abs(1.0 - share)


def _differences(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """(positions, classes) float64; classes that a family rules out count as no difference."""
    parts = [(a.double() - b.double()).nan_to_num(0.0, 0.0, 0.0) for a, b in zip(one, other, strict=True)]
    return torch.cat(parts)


# -- where two models part -------------------------------------------------------------------------------------------


def block_outputs(model: nn.Module, row: Tensor) -> dict[str, Tensor]:
    """Output of each block on one row, to tell where two models part; blocks that give no tensor are left out."""
    with watching_blocks(model) as found, torch.no_grad():
        model(**token_inputs(model, row))
    return found


@contextlib.contextmanager
def watching_blocks(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The same of a forward pass inside."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(hidden, Tensor):
                found[path] = hidden.detach().float().cpu()

        return hook

    handles = [block.register_forward_hook(keep(path)) for path, block in structure(model).blocks.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def drift(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str:
    """The blocks whose outputs part most, in words."""
    sizes = {
        path: float((before[path] - after[path]).abs().max() / before[path].abs().max().clamp_min(1e-12))
        # over the block's own size, for later blocks have larger numbers
        for path in before
        if path in after and before[path].shape == after[path].shape
    }
    worst = sorted(sizes, key=lambda path: -sizes[path])[:5]
    return ", ".join(f"{path} ({sizes[path]:.1e})" for path in worst)
