"""VeRA (arXiv:2310.11454, eq. 2).

    y = W x + bias + b * (B[:out] (d * (A[:, :in] dropout(x))))

Shapes: A (r, max_in) and B (max_out, r), frozen, one pair for the whole model, Kaiming-uniform from
`projection_prng_key` (A is drawn first); the learned vectors d (r,) and b (out_features,), of each layer.

Keys: `P.vera_lambda_b`, `P.vera_lambda_d`; `base_model.vera_A`, `base_model.vera_B` with `save_projection`.
Compared with peft 0.21.2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.adapters.base import Entry, InitContext, Shapes
from peftcli.adapters.draws import kaiming_uniform
from peftcli.adapters.layers import AdapterLayer, AdapterPart, unwrapped
from peftcli.adapters.layers_method import LayersAdapter
from peftcli.adapters.linears import Biases, LinearsAdapter, LinearsMethod
from peftcli.adapters.methods.vera.config import VeraConfig
from peftcli.errors import AdapterError, Fault
from peftcli.models.weights import weight_view

PROJECTION_KEYS = ("base_model.vera_A", "base_model.vera_B")


class SharedPair(AdapterPart):
    """The frozen pair; one object that every layer holds, so that it moves with the model and exists once."""

    A: Tensor
    B: Tensor

    def __init__(self, r: int, max_out: int, max_in: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("A", torch.empty(r, max_in, device=device), persistent=False)
        self.register_buffer("B", torch.empty(max_out, r, device=device), persistent=False)

    def draw(self, seed: int) -> None:
        """Fills both from the seed, on the CPU, A first."""
        generator = torch.Generator().manual_seed(seed)
        # the gain of a ReLU, as the reference draws its projections
        for tensor in (self.A, self.B):
            tensor.copy_(kaiming_uniform(tensor.shape, generator, gain=math.sqrt(2.0)))


class VeraLayer(AdapterLayer):
    """The two vectors of one linear layer."""

    def __init__(self, base_layer: nn.Module, config: VeraConfig) -> None:
        super().__init__(base_layer)
        view = weight_view(unwrapped(base_layer))
        self.out_features, self.in_features = view.shape
        self.config = config
        self.vera_lambda_d = nn.Parameter(torch.empty(config.r, device=view.device))
        self.vera_lambda_b = nn.Parameter(torch.empty(self.out_features, device=view.device))
        self.dropout = nn.Dropout(config.vera_dropout) if config.vera_dropout else nn.Identity()
        self.shared: SharedPair | None = None

    def pair(self) -> tuple[Tensor, Tensor]:
        """This layer's slices, A (r, in_features) and B (out_features, r)."""
        assert self.shared is not None
        return self.shared.A[:, : self.in_features], self.shared.B[: self.out_features]

    def adapted(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """W x + bias + b * (B (d * (A dropout(x)))), (..., out_features)."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        a, b = self.pair()
        inner = self.vera_lambda_d * F.linear(self.dropout(x.to(self.vera_lambda_d.dtype)), a)
        return (result + self.vera_lambda_b * F.linear(inner, b)).to(result.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"vera_lambda_b": self.vera_lambda_b, "vera_lambda_d": self.vera_lambda_d}

    @torch.no_grad()
    def initialise(self, context: InitContext) -> None:
        """d at `d_initial`, b zero; `init_weights: false`: both normal."""
        if self.config.init_weights:
            self.vera_lambda_d.fill_(self.config.d_initial)
            self.vera_lambda_b.zero_()
        else:
            for tensor in (self.vera_lambda_d, self.vera_lambda_b):
                tensor.copy_(torch.empty(tensor.shape).normal_(generator=context.generator))

    def delta_weight(self) -> Tensor:
        """diag(b) B diag(d) A, float32, (out_features, in_features)."""
        a, b = self.pair()
        # one by one, without a matrix for each diagonal
        inner = self.vera_lambda_d.detach().float()[:, None] * a.float()
        return self.vera_lambda_b.detach().float()[:, None] * (b.float() @ inner)

    def merged(self) -> dict[str, Tensor]:
        """W + diag(b) B diag(d) A."""
        view = weight_view(unwrapped(self.base_layer))
        return {"weight": view.stored(view.dense() + self.delta_weight())}


class VeraAdapter(LinearsAdapter):
    """Adds the shared pair to the entries."""

    config: VeraConfig

    def vera_layers(self) -> list[VeraLayer]:
        """The wrappers, in the order of the model."""
        return [layer for _, layer in self.layers if isinstance(layer, VeraLayer)]

    def entries(self) -> list[Entry]:
        """With the frozen pair, where `save_projection` asks for it."""
        found = super().entries()
        if self.config.save_projection:
            shared = self.vera_layers()[0].shared
            assert shared is not None
            found += [Entry(key, tensor) for key, tensor in zip(PROJECTION_KEYS, (shared.A, shared.B), strict=True)]
        return found

    def start_differs(self) -> str | None:
        return None if self.config.init_weights else "init_weights: false starts at random"


class Vera(LinearsMethod[VeraConfig]):
    """Wraps each linear layer that is targeted, then gives them one pair as large as the largest needs."""

    config_class = VeraConfig
    tensor_prefix = "vera_lambda_"

    def new_adapter(self, model: nn.Module, config: VeraConfig) -> VeraAdapter:
        return VeraAdapter(model, config)

    def trained_biases(self, config: VeraConfig) -> Biases:
        return "targets" if config.bias == "vera_only" else config.bias

    def faults(self, config: VeraConfig, path: str, module: nn.Module, shapes: Shapes | None) -> list[Fault]:
        """A rank that the file's projection does not have."""
        found = None if shapes is None else shapes.get(PROJECTION_KEYS[0])
        if found is not None and found[:1] != (config.r,):
            return [Fault(f"adapter_config.json gives rank {config.r}, `{PROJECTION_KEYS[0]}` has shape {list(found)}")]
        return []

    def layer(self, config: VeraConfig, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        return VeraLayer(module, config)

    def finish(self, adapter: LayersAdapter, config: VeraConfig, shapes: Shapes | None) -> None:
        """Draws the shared pair, as large as the largest layer needs, and gives it to every layer."""
        assert isinstance(adapter, VeraAdapter)
        layers = adapter.vera_layers()
        devices = {layer.vera_lambda_d.device for layer in layers}
        if len(devices) > 1:
            raise AdapterError("vera shares one pair between all layers, and this model is spread over several devices")
        # as large as the largest layer needs; the others take slices of it
        max_out = max(layer.out_features for layer in layers)
        max_in = max(layer.in_features for layer in layers)
        shared = SharedPair(config.r, max_out, max_in, devices.pop())
        # planned on the meta device: nothing to draw
        if not shared.A.is_meta:
            shared.draw(config.projection_prng_key)
        for layer in layers:
            layer.shared = shared
        super().finish(adapter, config, shapes)


METHOD = Vera()
