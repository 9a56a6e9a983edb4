"""The update of a weight that belongs to no linear layer: `target_parameters`, for instance fused experts.

Of a weight W (E, out, in), the experts' matrices one after another, W_e + s B_e A_e with A (r E, in), expert by expert,
and B (out, r E), rank by rank and within it expert by expert. A weight (out, in) is the case E = 1. Where a model states
that its experts are transposed (gpt-oss: E, in, out), the update is transposed too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from peftcli.adapters.base import InitContext
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.methods.lora.config import LoraConfig
from peftcli.adapters.methods.lora.inits import start_pair
from peftcli.adapters.methods.lora.linear import hold
from peftcli.adapters.methods.lora.routed import RoutedWeight
from peftcli.errors import AdapterError
from peftcli.models.experts import experts_are_transposed
from peftcli.models.storage import storage_of
from peftcli.models.weights import UnadaptedWeight


class LoraParameter(AdapterLayer):
    """Runs its base layer with W + s B A in the place of one of its parameters; several of them may be nested."""

    lora_A: Tensor
    lora_B: Tensor

    def __init__(self, base_layer: nn.Module, name: str, r: int, scaling: float, config: LoraConfig) -> None:
        super().__init__(base_layer)
        weight = unwrapped(base_layer).get_parameter(name)
        storage = storage_of(unwrapped(base_layer))
        if name == "weight" and storage.is_packed:
            raise AdapterError(
                f"target_parameters: `{name}` is stored as {storage.name}",
                fix="name the layer in target_modules, which adapts it beside its packed weight",
            )
        if weight.dim() not in (2, 3):
            raise AdapterError(f"target_parameters: `{name}` has {weight.dim()} dimensions, LoRA needs 2 or 3")
        self.name = name
        self.r = r
        self.scaling = scaling
        self.config = config
        self.experts = weight.shape[0] if weight.dim() == 3 else 1
        self.transposed = weight.dim() == 3 and experts_are_transposed(unwrapped(base_layer))
        rows, columns = weight.shape[:-3:-1] if self.transposed else weight.shape[-2:]
        device = weight.device
        hold(self, "lora_A", torch.empty(r * self.experts, columns, device=device), trained=not config.freeze_a)
        self.lora_B = nn.Parameter(torch.empty(rows, r * self.experts, device=device))

    def adapted(self, *args: Any, **kwargs: Any) -> Any:
        """The base layer's own forward, with W + s B A in the place of its parameter."""
        depth, inner = 0, self.base_layer
        while isinstance(inner, AdapterLayer):
            depth, inner = depth + 1, inner.base_layer
        weight = inner.get_parameter(self.name)
        changed = self._routed(weight) if weight.dim() == 3 else (weight + self.delta()).to(weight.dtype)
        return functional_call(self.base_layer, {"base_layer." * depth + self.name: changed}, args, kwargs)

    def shown(self, name: str, parameter: nn.Parameter) -> Tensor:
        return UnadaptedWeight.of(parameter, f"{self.path}.{name}") if name == self.name else parameter

    def by_expert(self) -> tuple[Tensor, Tensor]:
        """A (E, r, in) and B (E, out, r)."""
        lora_a = self.lora_A.view(self.experts, self.r, -1)
        return lora_a, self.lora_B.view(-1, self.r, self.experts).permute(2, 0, 1)

    def _routed(self, weight: Tensor) -> RoutedWeight:
        return RoutedWeight.of(weight, *self.by_expert(), self.scaling, turned=self.transposed)

    def delta(self) -> Tensor:
        """s B A in the shape of the weight."""
        lora_a, lora_b = self.by_expert()
        delta = (lora_b @ lora_a) * self.scaling
        delta = delta.mT if self.transposed else delta
        return delta.reshape(unwrapped(self.base_layer).get_parameter(self.name).shape)

    def tensors(self) -> dict[str, Tensor]:
        return {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B}

    def plain_tensors(self) -> dict[str, Tensor]:
        """The same update at rank 2r: this start never shifts the base, the second half is zero."""
        lora_a = self.lora_A.detach().view(self.experts, self.r, -1)
        lora_b = self.lora_B.detach().view(-1, self.r, self.experts)
        return {
            "lora_A.weight": torch.cat([lora_a, torch.zeros_like(lora_a)], 1).flatten(0, 1),
            "lora_B.weight": torch.cat([lora_b, torch.zeros_like(lora_b)], 1).flatten(1, 2),
        }

    def half_names(self) -> dict[str, str]:
        """Tensor name -> which half of the pair it belongs to, for parameter groups."""
        return {"lora_A.weight": "A", "lora_B.weight": "B"}

    @torch.no_grad()
    def initialise(self, context: InitContext) -> None:
        how = self.config.init_lora_weights
        # starts from weights or data are of linear layers: here they mean the usual one
        plain = how if isinstance(how, bool) or how == "gaussian" else True
        start_pair(self.lora_A, self.lora_B, plain, self.r, context.generator)

    def merged(self) -> dict[str, Tensor]:
        """W + s B A, expert by expert."""
        weight = unwrapped(self.base_layer).get_parameter(self.name)
        with torch.no_grad():
            if weight.dim() != 3:
                return {self.name: weight.detach().float() + self.delta().float()}
            # one expert after another: beside the new weight no second one of its size
            merged = weight.detach().to(torch.float32, copy=True)
            lora_a, lora_b = self.by_expert()
            for new, a, b in zip(merged, lora_a, lora_b, strict=True):
                change = (b.float() @ a.float()) * self.scaling
                new.add_(change.T if self.transposed else change)
            return {self.name: merged}
