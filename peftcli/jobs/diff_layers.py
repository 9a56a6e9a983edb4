"""Two adapters, layer by layer: how much each changes a weight, and whether in the same direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from peftcli.adapters.documents import TENSORS_NAME
from peftcli.adapters.subspaces import subspace_overlap
from peftcli.adapters.tensor_file import read_tensors
from peftcli.adapters.updates import weight_changes
from peftcli.errors import PeftcliError
from peftcli.jobs.opening import open_adapter


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
    # on the CPU: two runs compare the same wherever this is asked
    model = open_adapter(path, base=base, device="cpu").model
    return {label: change for label, change, _ in weight_changes(model)}


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
    # a zero or an unlike shape has no direction to compare
    if a is None or b is None or a.shape != b.shape or not norm_a or not norm_b:
        return LayerPair(layer, norm_a, norm_b, None, None, None)
    # summed in float64: products of two large matrices in float32 lose the digits that a cosine near 1 needs
    cosine = float((a * b).sum(dtype=torch.float64)) / (norm_a * norm_b)
    # rounding can leave it a bit outside of -1 to 1
    return LayerPair(layer, norm_a, norm_b, norm_b / norm_a, max(-1.0, min(1.0, cosine)), subspace_overlap(a, b))
