"""Start values of a pair A (r, in), B (out, r). All are drawn or computed on the CPU or the weight's device in float32.

true         A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0
gaussian     A ~ N(0, 1/r^2), B = 0
orthogonal   B A = 0 with neither zero: rows of A and columns of B from the two halves of one orthogonal matrix
pissa        the first r singular triplets of W (arXiv:2404.02948), s B A = U_r S_r V_r^T
olora        the first r columns of Q and rows of R of W = Q R (arXiv:2406.01775)
"""

from __future__ import annotations

import torch
from torch import Tensor

from peftcli.adapters.draws import kaiming_uniform

OVERSAMPLING = 6
"""Directions beyond r that a randomised SVD follows."""


def start_pair(lora_a: Tensor, lora_b: Tensor, how: bool | str, r: int, generator: torch.Generator) -> None:
    """Fills a pair by a start that looks at neither weight nor data."""
    if how == "gaussian":
        # deviation 1/r, as the reference draws it, whatever the width
        lora_a.copy_(torch.empty(lora_a.shape).normal_(0.0, 1.0 / r, generator=generator))
        lora_b.zero_()
    elif how == "orthogonal":
        start_a, start_b = _orthogonal(r, lora_b.shape[0], lora_a.shape[1], generator)
        lora_a.copy_(start_a)
        lora_b.copy_(start_b)
    else:
        lora_a.copy_(kaiming_uniform(lora_a.shape, generator))
        if how:
            lora_b.zero_()
        else:
            lora_b.copy_(kaiming_uniform(lora_b.shape, generator))


def _orthogonal(r: int, out_features: int, in_features: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    basis = torch.linalg.qr(torch.randn(r, r, generator=generator)).Q
    odd, even = basis[1::2], basis[0::2]  # (r/2, r) each; odd even^T = 0
    # a tenth, as the reference scales this start
    start_a = (torch.randn(in_features, r // 2, generator=generator) @ odd).T / 10.0
    start_b = torch.randn(out_features, r // 2, generator=generator) @ even / 10.0
    return start_a, start_b


def pair_from_weight(
    weight: Tensor, r: int, scaling: float, how: str, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A and B of a start that is part of the weight (out, in), float32."""
    if how == "olora":
        q, upper = torch.linalg.qr(weight)
        return upper[:r].contiguous(), q[:, :r].contiguous()
    if how == "pissa":
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    else:
        assert generator is not None
        u, s, vt = randomised_svd(weight, r, int(how.rsplit("_", 1)[-1]), generator)
    # half of the singular value on either side, so that neither half learns faster
    root = (s[:r] / scaling).sqrt()
    return root[:, None] * vt[:r], u[:, :r] * root


def randomised_svd(
    matrix: Tensor, r: int, iterations: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular triplets by subspace iteration (arXiv:0909.4061, algorithm 4.4), seeded."""
    width = min(r + OVERSAMPLING, *matrix.shape)
    start = torch.randn(matrix.shape[1], width, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(iterations):
        other = torch.linalg.qr(matrix.T @ basis).Q
        # orthonormal again after each product: powers of the matrix would turn all columns the same way
        basis = torch.linalg.qr(matrix @ other).Q
    u, s, vt = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u, s, vt
