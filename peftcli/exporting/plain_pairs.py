"""An adapter as what every server understands: W + B A for some linear layers, and nothing else.

Any method whose layers change weights by factors of low rank has this form exactly, scaling included. What has not (a
magnitude for each row, a trained head, virtual tokens) is refused, with the conversion that would have it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.layers_method import LayersAdapter
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError
from peftcli.models.weights import is_linear


@dataclass(frozen=True)
class PlainPair:
    """The change of one linear layer's weight (out, in): B A."""

    path: str
    lora_A: Tensor
    """(r, in), float32."""
    lora_B: Tensor
    """(out, r), float32, scaling included."""


def plain_pairs(model: nn.Module, where: str) -> list[PlainPair]:
    """The whole adapter as pairs, in the order of the model. Raises `AdapterError` for an adapter that is more than that."""
    adapter = adapter_of(model)
    layers = dict(adapter.layers) if isinstance(adapter, LayersAdapter) else {}
    pairs = [_pair(path, layer, where) for path, layer in layers.items()]
    covered = {id(tensor) for layer in layers.values() for tensor in layer.tensors().values()}
    rest = [entry.key for entry in adapter.entries() if id(entry.tensor) not in covered]
    if not pairs or rest:
        what = f"`{rest[0]}`" if rest else f"the method {adapter.config.name}"
        raise _more_than_pairs(what, where)
    return pairs


def _pair(path: str, layer: AdapterLayer, where: str) -> PlainPair:
    with torch.no_grad():
        factors = layer.low_rank_update()
    if factors is None or not is_linear(unwrapped(layer)):
        raise _more_than_pairs(f"the update of `{path}`", where)
    left, right = factors
    return PlainPair(path, right.detach().float().cpu(), left.detach().float().cpu())


def _more_than_pairs(what: str, where: str) -> AdapterError:
    return AdapterError(
        f"{what} is not a low-rank pair, the only form that servers of adapters know",
        where=where,
        fix="add --merged for the whole model, or `peft convert ADAPTER --to lora` first",
    )
