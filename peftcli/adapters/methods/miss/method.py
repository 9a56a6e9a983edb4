"""MiSS, matrix shard sharing (arXiv:2409.15371, eq. 4; first published as Bone).

    y = W x + b + D^T s        s_k = sum of x_i over all i with i mod r = k

so the change of W at (j, i) is D[i mod r, j]: every stretch of r inputs meets the same matrix. With `init_weights: mini`
D has mini_r columns, and output j takes column j mod mini_r.

Shapes: D (r, out_features), or (r, mini_r). Key: `P.miss_block`. Compared with peft 0.21.2, which adapts nn.Linear and
not Conv1D. Its variant `bat`, which multiplies blocks of the base, is not read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.adapters.base import InitContext, Shapes
from peftcli.adapters.draws import kaiming_uniform
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.linears import Biases, LinearsAdapter, LinearsMethod, rank_faults
from peftcli.adapters.methods.miss.config import MissConfig
from peftcli.errors import Fault
from peftcli.models.weights import weight_view


class MissLayer(AdapterLayer):
    """The shared matrix of one linear layer."""

    def __init__(self, base_layer: nn.Module, config: MissConfig) -> None:
        super().__init__(base_layer)
        view = weight_view(unwrapped(base_layer))
        self.config = config
        self.out_features, self.in_features = view.shape
        columns = config.mini_r if config.init_weights == "mini" else self.out_features
        self.miss_block = nn.Parameter(torch.empty(config.r, columns, device=view.device))
        self.dropout = nn.Dropout(config.miss_dropout)

    def adapted(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """W x + b + D^T s, (..., out_features)."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        # zeros after the last input make up a whole stretch, and add nothing to the sums
        exact = self.dropout(F.pad(x.to(self.miss_block.dtype), (0, -self.in_features % self.config.r)))
        sums: Tensor = exact.unflatten(-1, (-1, self.config.r)).sum(-2)
        moved = result + sums @ self.columns()
        return moved.to(result.dtype)

    def columns(self) -> Tensor:
        """D with a column for each output, (r, out_features)."""
        repeated: Tensor = self.miss_block.repeat(1, self.out_features // self.miss_block.shape[1])
        return repeated

    def tensors(self) -> dict[str, Tensor]:
        return {"miss_block": self.miss_block}

    @torch.no_grad()
    def initialise(self, context: InitContext) -> None:
        """Zeros, which gradients move at the first step; `init_weights: false`: Kaiming-uniform."""
        if self.config.init_weights:
            self.miss_block.zero_()
        else:
            self.miss_block.copy_(kaiming_uniform(self.miss_block.shape, context.generator))

    def low_rank_update(self) -> tuple[Tensor, Tensor]:
        """D^T and the sums as a matrix of zeros and ones."""
        owners = torch.arange(self.in_features, device=self.miss_block.device) % self.config.r
        return self.columns().T, F.one_hot(owners, self.config.r).T.to(self.miss_block.dtype)

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """W with D repeated along the inputs added."""
        view = weight_view(unwrapped(self.base_layer))
        stretches = -(-self.in_features // self.config.r)
        delta = self.columns().float().T.repeat(1, stretches)[:, : self.in_features]
        return {"weight": view.stored(view.dense() + delta)}


class MissAdapter(LinearsAdapter):
    """Says when it does not start as the base."""

    config: MissConfig

    def start_differs(self) -> str | None:
        return None if self.config.init_weights else "init_weights: false starts at random"


class Miss(LinearsMethod[MissConfig]):
    """Wraps each linear layer that is targeted."""

    config_class = MissConfig
    tensor_prefix = "miss_"

    def new_adapter(self, model: nn.Module, config: MissConfig) -> MissAdapter:
        return MissAdapter(model, config)

    def trained_biases(self, config: MissConfig) -> Biases:
        return "targets" if config.bias == "MiSS_only" else config.bias

    def faults(self, config: MissConfig, path: str, module: nn.Module, shapes: Shapes | None) -> list[Fault]:
        """A rank above the layer's inputs or one that the file's tensor does not have; columns that fit no output."""
        out_features, in_features = weight_view(module).shape
        if config.init_weights == "mini" and out_features % config.mini_r:
            why = f"mini_r = {config.mini_r} does not divide the {out_features} outputs of `{path}`"
            return [Fault(why, fix="use a divisor of all of them, such as a power of two")]
        return rank_faults(path, module, config.r, shapes, "miss_block", limit=in_features)

    def layer(self, config: MissConfig, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        return MissLayer(module, config)


METHOD = Miss()
"""MiSS."""
