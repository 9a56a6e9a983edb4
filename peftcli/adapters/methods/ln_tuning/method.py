"""LN tuning (arXiv:2312.11420): trains the norms of the base only.

    y = norm(x; g, b)        g (and b, where there is one) trained whole, from the base's values

Shapes: as the base's norms, (hidden,). Keys: `P.ln_tuning_layers.weight`, `P.ln_tuning_layers.bias`, P the path of the
norm; modules of `modules_to_save` under their plain names. Compared with peft 0.21.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from peftcli.adapters.base import Entry, Shapes
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.layers import AdapterLayer
from peftcli.adapters.layers_method import LayersAdapter
from peftcli.adapters.linears import LinearsAdapter, LinearsMethod
from peftcli.adapters.methods.ln_tuning.config import LnTuningConfig
from peftcli.adapters.names_in_file import shortest_names
from peftcli.adapters.selection import SelectedParameters, selected_entries
from peftcli.adapters.targets import ALL_LINEAR, find_targets
from peftcli.errors import AdapterError
from peftcli.models.structure import is_norm
from peftcli.models.sublayers import stream_norms
from peftcli.models.trace import Participation

SEGMENT = "ln_tuning_layers."


class NormCopy(SelectedParameters):
    """A norm that runs with trained copies of all its parameters."""

    def tensors(self) -> dict[str, Tensor]:
        """Name -> copy, under the reference's prefix."""
        return {SEGMENT + name: tensor for name, tensor in super().tensors().items()}


class LnTuningAdapter(LinearsAdapter):
    """Norm copies, and copies of modules to save."""

    config: LnTuningConfig

    def entries(self) -> list[Entry]:
        return selected_entries(self.layers)

    def resolved_fields(self) -> dict[str, Any]:
        """The norms by name, where the recipe left them to the default."""
        changes = super().resolved_fields()
        # a file of the reference must name its modules: without names it would look for its own list of families
        if self.config.target_modules is None:
            changes["target_modules"] = shortest_names(self.sites, self.model)
        return changes


class LnTuning(LinearsMethod[LnTuningConfig]):
    """Wraps norms."""

    config_class = LnTuningConfig
    tensor_prefix = SEGMENT

    def new_adapter(self, model: nn.Module, config: LnTuningConfig) -> LnTuningAdapter:
        return LnTuningAdapter(model, config)

    def supports(self, module: nn.Module) -> bool:
        """Norms, and nothing else."""
        return is_norm(module)

    def idle(self, seen: Participation, path: str) -> str | None:
        """Why a norm's weight takes no part in an answer; None where it does."""
        # copies stand in for a norm's parameters however they are read
        return seen.idle.get(f"{path}.weight")

    def found(self, model: nn.Module, config: LnTuningConfig, shapes: Shapes | None) -> Mapping[str, nn.Module]:
        """Norms that the configuration names; by default those of the residual stream, from a file those it holds."""
        candidates = dict(named_base_modules(model))
        norms = {path: module for path, module in candidates.items() if is_norm(module)}
        if not norms:
            raise AdapterError("ln_tuning trains norms, and this model has none with parameters")
        # a file says by its keys which norms it holds, which outlives a change of the default
        if shapes is not None and not config.target_modules:
            return self.held(norms, shapes)
        by_default = config.target_modules is None
        return find_targets(
            candidates,
            ALL_LINEAR if config.target_modules is None else config.target_modules,
            # the preset stands for the norms of the stream, and for nothing where it is asked for by its name
            all_linear=stream_norms(model) if by_default else (),
            exclude_modules=config.exclude_modules,
            layers_to_transform=config.layers_to_transform,
            layers_pattern=config.layers_pattern,
            supported=norms,
            from_file=shapes is not None,
        )

    def layer(self, config: LnTuningConfig, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        """The norm with copies of all its own parameters."""
        return NormCopy(module, [name for name, _ in module.named_parameters(recurse=False)])

    def place(
        self, adapter: LayersAdapter, config: LnTuningConfig, path: str, module: nn.Module, shapes: Shapes | None
    ) -> None:
        """Wraps a norm and remembers it as a target."""
        adapter.wrap(path, self.layer(config, path, module, shapes))
        assert isinstance(adapter, LnTuningAdapter)
        adapter.sites.append(path)


METHOD = LnTuning()
