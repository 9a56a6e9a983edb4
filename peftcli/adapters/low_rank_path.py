"""Whether a wrapper's answer may be taken as one function of its base layer's weight and a low-rank pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from peftcli.adapters.layers import AdapterLayer
from peftcli.kernels.active import active, fell_back, took
from peftcli.kernels.names import LOW_RANK
from peftcli.models.plain_linear import passes_untouched
from peftcli.models.weights import weight_view


def takes_low_rank(base_layer: nn.Module, x: Tensor, args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    """Whether the fast path is on and computes the same here; notes which of the two ways was taken."""
    if not active(LOW_RANK):
        return False
    why = _unfit(base_layer, x, bool(args or kwargs))
    if why is not None:
        fell_back(LOW_RANK, why)
        return False
    took(LOW_RANK)
    return True


def weight_of(base_layer: nn.Module) -> Tensor:
    """The layer's weight as it stands, (out, in)."""
    view = weight_view(base_layer)
    return view.dense(view.dtype)


def _unfit(base_layer: nn.Module, x: Tensor, more: bool) -> str | None:
    if isinstance(base_layer, AdapterLayer):
        return "a layer has several adapters or a trained bias"
    why = "a layer is given more than its input" if more else passes_untouched(base_layer)
    if why is not None:
        return why
    if torch.is_autocast_enabled(x.device.type):
        return "torch's autocast chooses the types"
    if type(x) is not Tensor or x.dtype != weight_view(base_layer).dtype:
        return "input and weight are of different types"
    return None
