"""Two adapters, layer by layer: how much each changes a weight, and whether in the same direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from peftcli.adapters.layers import LayersAdapter
from peftcli.adapters.storage import TENSORS_NAME
from peftcli.adapters.surgery import adapter_of
from peftcli.adapters.tensor_file import read_tensors
from peftcli.errors import PeftcliError
from peftcli.jobs.inspection import weight_changes
from peftcli.jobs.opening import open_adapter

RANK_LIMIT = 64
RANK_SHARE = 1e-3
"""Singular values below this share of the largest do not count towards a rank."""
_DENSE_LIMIT = 512


@dataclass(frozen=True)
class LayerPair:
    """One layer in both. Norms are Frobenius norms of the change of the weight; None where a side has none."""

    layer: str
    norm_a: float | None
    norm_b: float | None
    ratio: float | None
    """Of b to a."""
    cosine: float | None
    """Between the two changes as vectors."""
    overlap: float | None
    """Of the spaces that the two changes write into: 1 the same, k/d by chance (arXiv:2106.09685, eq. 4)."""


def layer_pairs(a: Path, b: Path, *, base: str | None) -> tuple[list[LayerPair], list[str]]:
    """The layers of two adapters, and notes on what could not be compared.

    Changes of weights where both have them and the base is at hand, else the stored tensors by name.
    """
    try:
        one, other = _changes(a, base), _changes(b, base)
    except PeftcliError as error:
        return _stored_pairs(a, b), [f"compared as stored, not as changes of weights: {error.message}"]
    if not one or not other:
        return _stored_pairs(a, b), ["compared as stored: the method changes no weights"]
    return _paired(one, other), []


def _changes(path: Path, base: str | None) -> dict[str, Tensor]:
    model = open_adapter(path, base=base, device="cpu").model
    return changes_of(model)


def changes_of(model: nn.Module) -> dict[str, Tensor]:
    """Label -> change (out, in) of every adapted tensor; empty for a method that changes none."""
    adapter = adapter_of(model)
    if not isinstance(adapter, LayersAdapter):
        return {}
    with torch.no_grad():
        return {label: change for path, layer in adapter.layers for label, change, _ in weight_changes(path, layer)}


def _stored_pairs(a: Path, b: Path) -> list[LayerPair]:
    one, other = ({k: v.float() for k, v in read_tensors(_file(path)).items()} for path in (a, b))
    return _paired(one, other)


def _file(path: Path) -> Path:
    return (path if (path / TENSORS_NAME).is_file() else path / "adapter") / TENSORS_NAME


def _paired(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[LayerPair]:
    names = [*one, *(name for name in other if name not in one)]
    return [pair(name, one.get(name), other.get(name)) for name in names]


def pair(layer: str, a: Tensor | None, b: Tensor | None) -> LayerPair:
    """Norms, cosine and overlap of two changes of one tensor."""
    norm_a = None if a is None else float(a.norm())
    norm_b = None if b is None else float(b.norm())
    if a is None or b is None or a.shape != b.shape or not norm_a or not norm_b:
        return LayerPair(layer, norm_a, norm_b, None, None, None)
    cosine = float((a * b).sum(dtype=torch.float64)) / (norm_a * norm_b)
    return LayerPair(layer, norm_a, norm_b, norm_b / norm_a, max(-1.0, min(1.0, cosine)), subspace_overlap(a, b))


def subspace_overlap(a: Tensor, b: Tensor) -> float | None:
    """|U_a^T U_b|^2 / min(rank) of the left singular vectors (out, rank); None for tensors that are no matrices."""
    if a.dim() != 2 or min(a.shape) < 2:
        return None
    left_a, left_b = left_space(a), left_space(b)
    return float((left_a.T @ left_b).square().sum()) / min(left_a.shape[1], left_b.shape[1])


def left_space(matrix: Tensor) -> Tensor:
    """Orthonormal columns (out, rank) that span what a matrix writes into, the weightiest `RANK_LIMIT` at most."""
    if min(matrix.shape) <= _DENSE_LIMIT:
        left, values = _dense_left_space(matrix.double())
    else:
        # exact for the low ranks that adapters have, and a hundredth of the work
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, _ = torch.svd_lowrank(matrix, q=RANK_LIMIT + 32, niter=2)
    rank = int((values[:RANK_LIMIT] > RANK_SHARE * values[0]).sum())
    found: Tensor = left[:, : max(rank, 1)].to(matrix.dtype)
    return found


def _dense_left_space(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors (out, k) and values (k), largest first, by the smaller Gram matrix: a tenth of a full SVD.

    In float64 squaring costs nothing that `RANK_SHARE` could see.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    values, vectors = squares.clamp(min=0.0).sqrt().flip(0)[:RANK_LIMIT], vectors.flip(1)[:, :RANK_LIMIT]
    if wide:
        return vectors, values
    left, _ = torch.linalg.qr(matrix @ vectors[:, values > RANK_SHARE * values[0]])
    return left, values
