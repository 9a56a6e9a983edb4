"""How a mixture of experts keeps the weights of all its experts in one tensor."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers.integrations.moe import use_experts_implementation

from peftcli.errors import ModelError

ROUTER = re.compile(r"gate|router")
"""What families call the layer that routes tokens to the experts beside it."""
_LAYOUT = "is_transposed"
"""The attribute by which transformers states that fused weights are (experts, in, out); classes without it have
(experts, out, in)."""


def experts_are_transposed(module: nn.Module) -> bool:
    """Whether a module's fused weights are (experts, in, out). Raises `ModelError` where transformers does not say."""
    if _LAYOUT not in inspect.signature(use_experts_implementation).parameters:
        raise ModelError(
            "this release of transformers states the layout of fused experts in a way that is not known here",
            fix="use an earlier release of transformers, or a newer peftcli",
        )
    return bool(getattr(module, _LAYOUT, False))


def routed_weights(model: nn.Module) -> list[str]:
    """Names of the fused weights of modules whose layout transformers states: those that tokens are routed to."""
    holders = {path for path, module in model.named_modules() if hasattr(module, _LAYOUT)}
    return [name for name in fused_weights(model) if name.rpartition(".")[0] in holders]


def routers(model: nn.Module) -> list[str]:
    """Paths of the layers that decide which experts a token goes to: beside the experts, of a name that says so."""
    found = []
    for path, module in model.named_modules():
        names = dict(module.named_children())
        if "experts" in names:
            prefix = f"{path}." if path else ""
            found += [f"{prefix}{name}" for name in names if ROUTER.fullmatch(name)]
    return found


def fused_weights(model: nn.Module) -> Iterator[str]:
    """Names of the weights that hold all experts of a layer: three dimensions, and no convolution's."""
    for path, module in model.named_modules():
        # kernels of one-dimensional convolutions have three dimensions too
        if not isinstance(module, _ConvNd):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 3:
                    yield f"{path}.{name}"
