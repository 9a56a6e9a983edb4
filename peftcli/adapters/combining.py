"""Several low-rank updates of one layer as one.

With c_i = w_i s_i (weight and the adapter's own scale), of pairs B_i A_i:

    cat             B = [B_1 .. B_n], A = [c_1 A_1; ..; c_n A_n]         the weighted sum, exactly; ranks add up
    svd             the weighted sum, cut to the rank asked for           the nearest of that rank (Eckart and Young, 1936)
    linear          B = sum |c_i|^1/2 B_i, A = sum sign(c_i) |c_i|^1/2 A_i      with cross terms B_1 A_2: an approximation
    ties            as linear, each tensor trimmed to its largest entries; where signs disagree the majority's are averaged
                    (Yadav et al. 2023, arXiv:2306.01708)
    dare_linear,    as linear and ties, each tensor thinned out at random and scaled up to keep its mean
    dare_ties       (Yu et al. 2023, arXiv:2311.03099)
    magnitude_prune as linear, each tensor trimmed to its largest entries

All but `cat` and `svd` treat A and B each by itself, as Hugging Face PEFT does under these names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peftcli.adapters.updates import product_norm

SIGNS = ("total", "frequency")
"""How the majority's sign is found: of the sum of the entries, or of the sum of their signs."""


@dataclass(frozen=True)
class Share:
    """One adapter's update of a layer, c B A."""

    lora_A: Tensor
    """(r, in), float32."""
    lora_B: Tensor
    """(out, r), float32."""
    coefficient: float
    """Weight times the adapter's own scale."""

    @property
    def rank(self) -> int:
        """Rows of its A."""
        return len(self.lora_A)


@dataclass(frozen=True)
class Ways:
    """What some ways of combining need to know."""

    rank: int | None = None
    """Of `svd`; None: the largest of the parts."""
    density: float = 1.0
    """Share of the entries that is kept, above 0 and at most 1."""
    majority_sign: str = SIGNS[0]
    generator: torch.Generator | None = None
    """Of the draws of `dare_linear` and `dare_ties`."""


Pair = tuple[Tensor, Tensor]
"""A (r, in) and B (out, r), scale one."""


def weighted_sum(shares: Sequence[Share]) -> Pair:
    """sum c_i B_i A_i, exactly, at the sum of the ranks."""
    lora_a = torch.cat([share.coefficient * share.lora_A for share in shares])
    return lora_a, torch.cat([share.lora_B for share in shares], dim=1)


def distance(pair: Pair, shares: Sequence[Share]) -> float:
    """How far a pair is from the weighted sum, as a share of its Frobenius norm; no matrix of a weight's size is made."""
    exact_a, exact_b = weighted_sum(shares)
    norm = product_norm(exact_b, exact_a)
    left = torch.cat([pair[1], -exact_b], dim=1)
    error = product_norm(left, torch.cat([pair[0], exact_a]))
    return error / norm if norm else math.inf if error else 0.0


def _cut(shares: Sequence[Share], ways: Ways) -> Pair:
    """Through the two thin factors: L R = Q_L (R_L R_R^T) Q_R^T, whose middle is as small as the ranks."""
    lora_a, lora_b = weighted_sum(shares)
    rank = ways.rank or max(share.rank for share in shares)
    # in float64: what the largest adapters add up to may cancel
    q_left, r_left = torch.linalg.qr(lora_b.double())
    q_right, r_right = torch.linalg.qr(lora_a.T.double())
    u, values, v = torch.linalg.svd(r_left @ r_right.T)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    return (root[:, None] * (v[:kept] @ q_right.T)).float(), ((q_left @ u[:, :kept]) * root).float()


Mix = Callable[[Tensor, Tensor, Ways], Tensor]
"""Tensors (adapters, ...) and their factors (adapters, 1, 1) to one tensor."""


def _sum(tensors: Tensor, factors: Tensor, ways: Ways) -> Tensor:
    return (tensors * factors).sum(dim=0)


def _of_the_majority(tensors: Tensor, factors: Tensor, ways: Ways) -> Tensor:
    """The mean of the weighted entries that have the majority's sign; an entry of zero has none."""
    elected = (tensors if ways.majority_sign == SIGNS[0] else tensors.sign()).sum(dim=0)
    agree = tensors.sign() == torch.where(elected >= 0, 1.0, -1.0)
    return (tensors * factors * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


def _largest(tensor: Tensor, ways: Ways) -> Tensor:
    """The largest entries in absolute value, the rest zero."""
    if ways.density == 1.0:
        return tensor
    places = tensor.abs().flatten().topk(int(ways.density * tensor.numel())).indices
    kept = torch.zeros_like(tensor).flatten()
    kept[places] = 1.0
    return tensor * kept.reshape(tensor.shape)


def _thinned(tensor: Tensor, ways: Ways) -> Tensor:
    """Entries kept by chance, scaled so that the mean stays."""
    if ways.density == 1.0:
        return tensor
    chances = torch.full(tensor.shape, ways.density)
    return tensor * torch.bernoulli(chances, generator=ways.generator) / ways.density


def _each_by_itself(shares: Sequence[Share], ways: Ways, trim: Callable[[Tensor, Ways], Tensor], mix: Mix) -> Pair:
    roots = torch.tensor([math.sqrt(abs(share.coefficient)) for share in shares])[:, None, None]
    signs = torch.tensor([math.copysign(1.0, share.coefficient) for share in shares])[:, None, None]
    first = torch.stack([trim(share.lora_A, ways) for share in shares])
    second = torch.stack([trim(share.lora_B, ways) for share in shares])
    # the sign on one side only: on both it would cancel
    return mix(first, roots * signs, ways), mix(second, roots, ways)


def _whole(tensor: Tensor, ways: Ways) -> Tensor:
    return tensor


HOWS: dict[str, Callable[[Sequence[Share], Ways], Pair]] = {
    "linear": lambda shares, ways: _each_by_itself(shares, ways, _whole, _sum),
    "cat": lambda shares, ways: weighted_sum(shares),
    "svd": _cut,
    "ties": lambda shares, ways: _each_by_itself(shares, ways, _largest, _of_the_majority),
    "dare_linear": lambda shares, ways: _each_by_itself(shares, ways, _thinned, _sum),
    "dare_ties": lambda shares, ways: _each_by_itself(shares, ways, _thinned, _of_the_majority),
    "magnitude_prune": lambda shares, ways: _each_by_itself(shares, ways, _largest, _sum),
}
"""Name of each way to combine -> what it does with the updates of one layer."""
OF_ANY_RANK = frozenset({"cat", "svd"})
"""Ways that take pairs of different rank."""
THINNING = frozenset({"ties", "dare_linear", "dare_ties", "magnitude_prune"})
"""Ways that keep a share of the entries."""
BY_MAJORITY = frozenset({"ties", "dare_ties"})
"""Ways in which signs are counted."""
DRAWING = frozenset({"dare_linear", "dare_ties"})
"""Ways with draws."""
