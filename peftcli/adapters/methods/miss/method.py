"""MiSS, matrix shard sharing (arXiv:2409.15371, eq. 4; first published as Bone).

    y = W x + b + D^T s        s_k = sum of x_i over all i with i mod r = k

so the change of W at (j, i) is D[i mod r, j]: every stretch of r inputs meets the same matrix. With `init_weights: mini`
D has mini_r columns, and output j takes column j mod mini_r. With `init_weights: bat` the weight is cut into blocks of r
outputs and r inputs, and the blocks W_ik of a row of blocks share one matrix D_i:

    y = (W + change) x + b     change_ik = (W_ik + 1) D_i

Shapes: D (r, out_features), or (r, mini_r), or (out_features / r, r, r). Key: `P.miss_block`. Compared with peft 0.21.2,
which adapts nn.Linear and not Conv1D.
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


class BatLayer(AdapterLayer):
    """Of one linear layer: a matrix for each row of blocks, by which the blocks are multiplied."""

    def __init__(self, base_layer: nn.Module, config: MissConfig) -> None:
        super().__init__(base_layer)
        view = weight_view(unwrapped(base_layer))
        self.r = config.r
        self.miss_block = nn.Parameter(torch.empty(view.shape[0] // self.r, self.r, self.r, device=view.device))

    def adapted(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """W x + b + change x, (..., out_features)."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        change = self.change()
        return (result + F.linear(x.to(change.dtype), change)).to(result.dtype)

    def change(self) -> Tensor:
        """(W_ik + 1) D_i, block by block: (out_features, in_features) in the type of D."""
        view = weight_view(unwrapped(self.base_layer))
        rows, columns = view.shape
        weight = view.dense(self.miss_block.dtype).reshape(rows // self.r, self.r, columns // self.r, self.r)
        one = torch.eye(self.r, dtype=weight.dtype, device=weight.device)[:, None, :]
        return torch.einsum("iakb,ibc->iakc", weight + one, self.miss_block).reshape(rows, columns)

    def tensors(self) -> dict[str, Tensor]:
        return {"miss_block": self.miss_block}

    @torch.no_grad()
    def initialise(self, context: InitContext) -> None:
        """Zeros, which gradients move at the first step."""
        self.miss_block.zero_()

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """W with its change added."""
        view = weight_view(unwrapped(self.base_layer))
        return {"weight": view.stored(view.dense() + self.change().float())}


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
        """A rank above the layer's inputs or one that the file's tensor does not have; columns that fit no output;
        blocks that do not make up the weight."""
        out_features, in_features = weight_view(module).shape
        if config.init_weights == "bat":
            if out_features % config.r or in_features % config.r:
                why = f"r = {config.r} does not divide the {out_features} outputs and {in_features} inputs of `{path}`"
                return [Fault(why, fix="use a divisor of all widths, such as a power of two")]
            return rank_faults(path, module, config.r, shapes, "miss_block", axis=2)
        if config.init_weights == "mini" and out_features % config.mini_r:
            why = f"mini_r = {config.mini_r} does not divide the {out_features} outputs of `{path}`"
            return [Fault(why, fix="use a divisor of all of them, such as a power of two")]
        return rank_faults(path, module, config.r, shapes, "miss_block", limit=in_features)

    def layer(self, config: MissConfig, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        return BatLayer(module, config) if config.init_weights == "bat" else MissLayer(module, config)


METHOD = Miss()
"""MiSS."""
