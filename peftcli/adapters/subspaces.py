"""Ranks of matrices and the spaces that they write into."""

from __future__ import annotations

import torch
from torch import Tensor

RANK_LIMIT = 64
RANK_SHARE = 1e-3
"""Singular values below this share of the largest do not count towards a rank."""
_DENSE_LIMIT = 512


def effective_rank(matrix: Tensor) -> float:
    """exp(entropy of the singular values as shares), 0 for a zero matrix (Roy and Vetterli, 2007)."""
    if matrix.dim() < 2:
        return 1.0 if bool(matrix.any()) else 0.0
    # values alone: shares need no singular vectors
    values = torch.linalg.svdvals(matrix.reshape(matrix.shape[0], -1))
    total = float(values.sum())
    if total <= 0.0:
        return 0.0
    shares = values / total
    # below it p log p is nought in float32
    shares = shares[shares > 1e-9]
    return float(torch.exp(-(shares * shares.log()).sum()))


def subspace_overlap(a: Tensor, b: Tensor) -> float | None:
    """|U_a^T U_b|^2 / min(rank) of the left singular vectors (out, rank); None for tensors that are no matrices."""
    if a.dim() != 2 or min(a.shape) < 2:
        # the share of the smaller space that lies in the other: 1 where it is contained, whatever the ranks are
        return None
    left_a, left_b = left_space(a), left_space(b)
    return float((left_a.T @ left_b).square().sum()) / min(left_a.shape[1], left_b.shape[1])


def left_space(matrix: Tensor) -> Tensor:
    """Orthonormal columns (out, rank) that span what a matrix writes into, the weightiest `RANK_LIMIT` at most."""
    if min(matrix.shape) <= _DENSE_LIMIT:
        left, values = _dense_left_space(matrix.double())
    else:
        # the draws inside must not move the caller's generator, and the same update has the same rank each time
        # exact for the low ranks that adapters have, and a hundredth of the work
        with torch.random.fork_rng(devices=[]):
            # 32 columns more than are kept and two power iterations: the usual oversampling, which leaves the kept ones
            # accurate
            torch.manual_seed(0)
            left, values, _ = torch.svd_lowrank(matrix, q=RANK_LIMIT + 32, niter=2)
    # at least one column: a zero matrix still has a space to compare
    rank = int((values[:RANK_LIMIT] > RANK_SHARE * values[0]).sum())
    found: Tensor = left[:, : max(rank, 1)].to(matrix.dtype)
    return found


def _dense_left_space(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors (out, k) and values (k), largest first, by the smaller Gram matrix: a tenth of a full SVD.

    In float64 squaring costs nothing that `RANK_SHARE` could see.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    # eigenvalues of a Gram matrix can come out below zero by rounding; `eigh` sorts upwards
    values, vectors = squares.clamp(min=0.0).sqrt().flip(0)[:RANK_LIMIT], vectors.flip(1)[:, :RANK_LIMIT]
    if wide:
        return vectors, values
    # left vectors are M v / s; QR in place of the division keeps them orthonormal where s is small
    left, _ = torch.linalg.qr(matrix @ vectors[:, values > RANK_SHARE * values[0]])
    return left, values
