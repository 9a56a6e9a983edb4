"""(IA)^3 (arXiv:2205.05638, section 3.3).

    y = l * (W x + b)        keys, values and whatever else is targeted
    y = W (l * x) + b        the layers in `feedforward_modules`

Shapes: l (out_features, 1) and (1, in_features), ones at the start.
Key: `P.ia3_l`. Targets are all linear layers by default: scaling the outputs of a gated block's `up` projection is
scaling the inputs of its `down` projection, so this holds the paper's choice and needs no list of model families.
Compared with peft 0.21.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.base import FILE_PREFIX, InitContext, Shapes
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.layers_method import LayersAdapter
from peftcli.adapters.linears import LinearsAdapter, LinearsMethod
from peftcli.adapters.methods.ia3.config import Ia3Config
from peftcli.adapters.patterns import compile_pattern
from peftcli.errors import AdapterError, Fault
from peftcli.models.weights import weight_view


class Ia3Layer(AdapterLayer):
    """The factors of one linear layer."""

    def __init__(self, base_layer: nn.Module, config: Ia3Config, *, feedforward: bool) -> None:
        super().__init__(base_layer)
        view = weight_view(unwrapped(base_layer))
        out_features, in_features = view.shape
        self.config = config
        self.feedforward = feedforward
        shape = (1, in_features) if feedforward else (out_features, 1)
        self.ia3_l = nn.Parameter(torch.empty(shape, device=view.device))

    def adapted(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """l * (W x + b), or W (l * x) + b in a feed-forward layer."""
        factors = self.ia3_l.flatten()
        if self.feedforward:
            # scaled in the type of the factors, then rounded once
            return self.base_layer((x * factors).to(x.dtype), *args, **kwargs)  # type: ignore[no-any-return]
        result: Tensor = self.base_layer(x, *args, **kwargs)
        return (result * factors).to(result.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"ia3_l": self.ia3_l}

    @torch.no_grad()
    def initialise(self, context: InitContext) -> None:
        """Ones; `init_ia3_weights: false`: normal."""
        if self.config.init_ia3_weights:
            self.ia3_l.fill_(1.0)
        else:
            self.ia3_l.copy_(torch.empty(self.ia3_l.shape).normal_(generator=context.generator))

    def merged(self) -> dict[str, Tensor]:
        """diag(l) W and l * b, or W diag(l) with b as it is."""
        view = weight_view(unwrapped(self.base_layer))
        factors = self.ia3_l.detach().float()
        new = {"weight": view.stored(view.dense() * factors)}
        if view.bias is not None and not self.feedforward:
            # the output is scaled, and the bias is a part of it
            new["bias"] = view.bias.detach().float() * factors.flatten()
        return new


class Ia3Adapter(LinearsAdapter):
    """Says when it does not start as the base, and that its factors are vectors."""

    config: Ia3Config

    def decays(self, parameter: nn.Parameter) -> bool:
        # factors of one leave the base as it is; decay would silence what they scale
        return False

    def resolved_fields(self) -> dict[str, Any]:
        """The feed-forward layers by path, where the recipe left them to the default."""
        changes = super().resolved_fields()
        if self.config.feedforward_modules is None:
            inner = [path for path, layer in self.layers if isinstance(layer, Ia3Layer) and layer.feedforward]
            changes["feedforward_modules"] = sorted(inner)
        return changes

    def start_differs(self) -> str | None:
        return None if self.config.init_ia3_weights else "init_ia3_weights: false starts at random"


class Ia3(LinearsMethod[Ia3Config]):
    """Finds the targets and which of them are feed-forward."""

    config_class = Ia3Config
    tensor_prefix = "ia3_"

    def new_adapter(self, model: nn.Module, config: Ia3Config) -> Ia3Adapter:
        return Ia3Adapter(model, config)

    def layer(self, config: Ia3Config, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        """The wrapper; which side it scales is what the file's tensor says, else what the configuration does."""
        shape = (shapes or {}).get(f"{FILE_PREFIX}{path}.ia3_l")
        if shape is not None and config.feedforward_modules is None:
            # left to the reference's table of families: the tensor itself says which side it scales
            return Ia3Layer(module, config, feedforward=shape[0] == 1)
        return Ia3Layer(module, config, feedforward=is_feedforward(config, path))

    def finish(self, adapter: LayersAdapter, config: Ia3Config, shapes: Shapes | None) -> None:
        """As in the base class; `AdapterError` for feed-forward entries that name no target."""
        super().finish(adapter, config, shapes)
        entries = config.feedforward_modules or []
        if isinstance(entries, str) or shapes is not None:
            return
        unmatched = [entry for entry in entries if not any(path.endswith(entry) for path in adapter.targets())]
        if unmatched:
            raise AdapterError(
                "feedforward_modules names layers that are not targets",
                faults=[
                    Fault(f"`{entry}` matches no target", fix="name it in target_modules too") for entry in unmatched
                ],
            )


def is_feedforward(config: Ia3Config, path: str) -> bool:
    """Whether a target is scaled at its input; the rule is the reference's, which reads our files (the end of a path)."""
    wanted = config.feedforward_modules or []
    if isinstance(wanted, str):
        return bool(compile_pattern(wanted, what="feedforward_modules").fullmatch(path))
    return any(path.endswith(entry) for entry in wanted)


METHOD = Ia3()
