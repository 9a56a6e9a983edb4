"""The triplets of one linear layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.adapters.base import InitContext
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.low_rank_path import takes_low_rank, weight_of
from peftcli.adapters.methods.adalora.config import AdaloraConfig
from peftcli.adapters.selection import bias_in_use
from peftcli.kernels.low_rank import low_rank_linear, paired
from peftcli.kernels.names import LOW_RANK
from peftcli.kernels.shadow import Shadows
from peftcli.models.weights import weight_view

# as the reference draws all three factors
_START_DEVIATION = 0.02


class AdaloraLinear(AdapterLayer):
    """y = W x + b + s B (E * (A x)), A (r, in), E (r, 1), B (out, r); `r` is below init_r when loaded pruned."""

    def __init__(self, base_layer: nn.Module, r: int, config: AdaloraConfig) -> None:
        super().__init__(base_layer)
        view = weight_view(unwrapped(base_layer))
        out_features, in_features = view.shape
        self.r = r
        self.config = config
        # as the reference has it, so that both give one number; pruning leaves the scale as it was
        alpha = config.lora_alpha if config.lora_alpha > 0 else config.init_r
        self.scaling = alpha / (config.init_r + 1e-5)
        self.lora_A = nn.Parameter(torch.empty(r, in_features, device=view.device))
        self.lora_E = nn.Parameter(torch.empty(r, 1, device=view.device))
        self.lora_B = nn.Parameter(torch.empty(out_features, r, device=view.device))
        self._shadows = Shadows()
        self.dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()

    def kernels(self) -> frozenset[str]:
        return frozenset() if self.config.lora_dropout else frozenset({LOW_RANK})

    def adapted(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self.kernels() and takes_low_rank(self.base_layer, x, args, kwargs):
            pair = paired(self.lora_A * self.lora_E, self.lora_B, self.scaling, x.dtype, self._shadows)
            return low_rank_linear(x, weight_of(self.base_layer), bias_in_use(self.base_layer), pair)
        result: Tensor = self.base_layer(x, *args, **kwargs)
        inner = F.linear(self.dropout(x.to(self.lora_A.dtype)), self.lora_A * self.lora_E)
        return (result + F.linear(inner, self.lora_B) * self.scaling).to(result.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"lora_A": self.lora_A, "lora_B": self.lora_B, "lora_E": self.lora_E}

    @torch.no_grad()
    def initialise(self, context: InitContext) -> None:
        for tensor in (self.lora_A, self.lora_B, self.lora_E):
            tensor.copy_(torch.empty(tensor.shape).normal_(0.0, _START_DEVIATION, generator=context.generator))
        if self.config.init_lora_weights:
            self.lora_E.zero_()

    def orthogonality(self) -> Tensor:
        """||A A^T - I|| + ||B^T B - I||, Frobenius norms."""
        identity = torch.eye(self.r, device=self.lora_A.device)
        rows = self.lora_A @ self.lora_A.T - identity
        columns = self.lora_B.T @ self.lora_B - identity
        total: Tensor = torch.linalg.matrix_norm(rows) + torch.linalg.matrix_norm(columns)
        return total

    def delta_weight(self) -> Tensor:
        """s B diag(E) A, float32, (out_features, in_features)."""
        scaled = self.lora_A.detach().float() * self.lora_E.detach().float()
        return (self.lora_B.detach().float() @ scaled) * self.scaling

    def merged(self) -> dict[str, Tensor]:
        view = weight_view(unwrapped(self.base_layer))
        return {"weight": view.stored(view.dense() + self.delta_weight())}
