"""How far an adapter moves each weight of the base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.layers_method import LayersAdapter
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import MergeError
from peftcli.models.spread import whole
from peftcli.models.weights import is_adaptable, is_linear, weight_view

_PIECE = 1 << 14
"""Elements; 64 KiB in float32."""


@dataclass(frozen=True)
class UpdateNorm:
    """How far an adapter moves one tensor. Norms are Frobenius norms."""

    layer: str
    norm: float
    relative: float | None
    """Over the norm of the base's tensor; None where that is all zero."""


@torch.no_grad()
def update_norms(model: nn.Module) -> list[UpdateNorm]:
    """The norm of the change of each adapted tensor; none for a method that changes no weights.

    From the two factors where a layer has a change of low rank, so that no matrix of a weight's size is made.
    """
    found = []
    for path, layer in _layers(model):
        factors = layer.low_rank_update()
        if factors is None:
            changes = [(label, float(change.norm()), base) for label, change, base in _layer_changes(path, layer)]
        else:
            view = weight_view(unwrapped(layer))
            base = _norm(view.dense(view.dtype))
            changes = [(path, product_norm(*factors), base)]
        found += [UpdateNorm(label, norm, relative_norm(norm, base)) for label, norm, base in changes]
    return found


def product_norm(left: Tensor, right: Tensor) -> float:
    """|L R| for L (m, r) and R (r, n): |L R|^2 = tr(L^T L R R^T), r times r.

    In float64: where a start is subtracted, terms of its size cancel.
    """
    left, right = left.double(), right.double()
    square = ((left.T @ left) * (right @ right.T)).sum()
    # rounding can leave a square just below zero
    return float(square.clamp(min=0.0).sqrt())


def relative_norm(norm: float, base: float) -> float | None:
    """A change's norm over the base's; None where the base is all zero."""
    return norm / base if base > 0.0 else None


def weight_changes(model: nn.Module) -> Iterator[tuple[str, Tensor, float]]:
    """(label, change in float32 (out, in), norm of the base's tensor) of each adapted tensor that can be merged, one
    layer after the other: all of them together are as large as the base."""
    for path, layer in _layers(model):
        with torch.no_grad():
            found = _layer_changes(path, layer)
        yield from found


def _layers(model: nn.Module) -> Iterator[tuple[str, AdapterLayer]]:
    adapter = adapter_of(model)
    if isinstance(adapter, LayersAdapter):
        yield from adapter.layers


def _layer_changes(path: str, layer: AdapterLayer) -> list[tuple[str, Tensor, float]]:
    base = unwrapped(layer)
    try:
        merged: Mapping[str, Tensor] = layer.merged()
    except MergeError:
        return []
    found = []
    for name, value in merged.items():
        original = _original(base, name, value)
        change = value.float() - original
        if name == "weight" and is_linear(base) and weight_view(base).transposed:
            # (out, in), as every other layer has it
            change = change.T
        found.append((path if name == "weight" else f"{path}.{name}", change, _norm(original)))
    return found


def _original(base: nn.Module, name: str, value: Tensor) -> Tensor:
    """What the base has there, float32, in the layout that it is stored in; zero where it has nothing."""
    if name == "weight" and is_adaptable(base):
        view = weight_view(base)
        return view.stored(view.dense())
    return whole(base.get_parameter(name).detach()).float() if _has(base, name) else torch.zeros_like(value)


def _has(module: nn.Module, name: str) -> bool:
    try:
        module.get_parameter(name)
    except AttributeError:
        return False
    return True


def _norm(tensor: Tensor) -> float:
    """Frobenius norm. On a CPU in pieces that stay in its cache: five times as fast as torch's own reduction of a
    whole half-precision weight, and without its rounding (1 % over 16 million equal numbers)."""
    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        return float(torch.linalg.vector_norm(tensor, dtype=torch.float32))
    flat = (tensor if tensor.is_contiguous() else tensor.T).reshape(-1)
    piece = torch.empty(_PIECE)
    total = 0.0
    for part in flat.split(_PIECE):
        total += float(torch.linalg.vector_norm(piece[: part.numel()].copy_(part))) ** 2
    return math.sqrt(total)
