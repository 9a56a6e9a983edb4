"""Methods that adapt linear layers one by one: targets, patterns, biases and saved modules, and what files say of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Generic, Literal

from torch import nn

from peftcli.adapters.adapter_file import AdapterFile
from peftcli.adapters.base import FILE_PREFIX, Shapes
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.layers_method import LayersAdapter, LayersMethod
from peftcli.adapters.names_in_file import TargetedT, order_free, shortest_names, sites_in_file, with_present_names
from peftcli.adapters.oddities import tell
from peftcli.adapters.selection import SelectedParameters, train_named_modules
from peftcli.adapters.target_config import TargetedConfig
from peftcli.adapters.targets import ALL_LINEAR, find_targets, names_path, unmatched_pattern_keys
from peftcli.errors import AdapterError, Fault
from peftcli.models.direct_reads import read_directly
from peftcli.models.experts import routers
from peftcli.models.plain_linear import linear_fault, table_fault
from peftcli.models.structure import structure
from peftcli.models.trace import Participation, participation
from peftcli.models.weights import is_linear, weight_view

NARROW = "narrower than the method asks for"
ROUTES = "that route tokens to experts"
ODD = "that are not a plain product with a weight of their own"

Biases = Literal["none", "all", "targets"]
"""Which of the base's biases a method trains too."""


class LinearsAdapter(LayersAdapter):
    """An adapter of linear layers; `sites` are the paths that the configuration's targets named."""

    config: TargetedConfig

    def __init__(self, model: nn.Module, config: TargetedConfig) -> None:
        super().__init__(model, config)
        self.sites: list[str] = []
        self.from_file = False
        """Whether the configuration was read from a file, whose `modules_to_save` follow the reference's looser rule."""

    def targets(self) -> list[str]:
        return list(self.sites)

    def file_config(self) -> TargetedConfig:
        return self.config.model_copy(update=self.resolved_fields())

    def resolved_fields(self) -> dict[str, Any]:
        """Fields that a file states otherwise than the recipe: presets as names, patterns whose order counts as paths."""
        changes: dict[str, Any] = {}
        config = self.config
        hidden = ("exclude_modules", "layers_to_transform", "layers_pattern")
        if any(getattr(config, field) is not None for field in hidden if field in config.recipe_only):
            changes["target_modules"] = sorted(self.sites)
        # an adapter that leaves layers out names those that it has, or the file would ask for all
        elif config.target_modules == ALL_LINEAR or self.left_out or (self.sites and not config.target_modules):
            changes["target_modules"] = shortest_names(self.sites, self.model)
        saved = config.modules_to_save or []
        paths = [path for path, _ in named_base_modules(self.model)]
        loose = any(path.endswith(name) and not names_path(name, path) for name in saved for path in paths)
        if loose and not self.from_file:
            # the reference takes an entry for the end of a name, not of a path
            changes["modules_to_save"] = sorted(p for p in paths if p and any(names_path(name, p) for name in saved))
        for field in ("rank_pattern", "alpha_pattern"):
            pattern = getattr(config, field, None)
            if pattern:
                stable = order_free(pattern, self.sites)
                if stable != pattern:
                    changes[field] = stable
        return changes


class LinearsMethod(LayersMethod[TargetedT], Generic[TargetedT]):
    """Finds the targets, checks what was asked of them, and wraps each; subclasses make the wrapper."""

    tensor_prefix: ClassVar[str] = ""
    """What the names of a site's tensors begin with, after the path of the module."""

    def new_adapter(self, model: nn.Module, config: TargetedT) -> LinearsAdapter:
        return LinearsAdapter(model, config)

    def supports(self, module: nn.Module) -> bool:
        """Whether the method can adapt a module of this kind."""
        return is_linear(module)

    def trained_biases(self, config: TargetedT) -> Biases:
        """Which biases of the base are trained beside."""
        return "none"

    def faults(self, config: TargetedT, path: str, module: nn.Module, shapes: Shapes | None) -> list[Fault]:
        """What does not fit at one site, found before anything is allocated."""
        return []

    @abstractmethod
    def layer(self, config: TargetedT, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        """The wrapper for one site."""

    def adopt(self, model: nn.Module, config: TargetedT, file: AdapterFile) -> tuple[TargetedT, AdapterFile]:
        return with_present_names(model, config, file, self.tensor_prefix), file

    def sites(self, model: nn.Module, config: TargetedT, shapes: Shapes | None) -> Mapping[str, nn.Module]:
        found = self._asked(model, config, shapes)
        # a file's targets are those that it holds tensors for
        left_out = {} if shapes is not None else self.left_out(model, config)
        sites = {path: module for path, module in found.items() if path not in left_out}
        names = self.pattern_names(model, config, sites)
        unmatched = [
            f"`{key}` in {field} matches no adapted layer"
            for field in ("rank_pattern", "alpha_pattern")
            for key in unmatched_pattern_keys(getattr(config, field, None) or {}, names)
        ]
        faults = [Fault(text, fix="name the end of a layer's path") for text in unmatched if shapes is None]
        faults += [fault for path, module in sites.items() for fault in self.faults(config, path, module, shapes)]
        if faults:
            # ten: layers repeat, and so do their faults
            raise AdapterError(f"{config.name} does not fit this model as asked", faults=faults[:10])
        return sites

    def _asked(self, model: nn.Module, config: TargetedT, shapes: Shapes | None) -> dict[str, nn.Module]:
        kept = config.modules_to_save or []
        found = self.found(model, config, shapes)
        return {path: module for path, module in found.items() if not any(_inside(path, name) for name in kept)}

    def left_out(self, model: nn.Module, config: TargetedT) -> dict[str, str]:
        """Path of each module that the targets name, or that the preset could mean, and that is not adapted -> why.

        Raises `AdapterError` where a name of the user's stands for nothing else.
        """
        asked, seen = self._asked(model, config, None), participation(model)
        reasons = {path: self.idle(seen, path) for path in asked}
        if config.target_modules == ALL_LINEAR:
            narrow = {path: NARROW for path, module in asked.items() if self.faults(config, path, module, None)}
            # where none is wide enough the faults are told instead
            reasons |= narrow if len(narrow) < len(asked) else {}
            reasons |= {path: ODD for path in self.odd_linears(model)}
            reasons |= _routing(model, asked)
        found = {path: reason for path, reason in reasons.items() if reason is not None}
        _require_use(config, asked, found)
        return found

    def idle(self, seen: Participation, path: str) -> str | None:
        """Why what the method puts at a site could not learn; None where it could."""
        return seen.layer(path)

    def odd_linears(self, model: nn.Module) -> list[str]:
        """Linear layers that the preset passes over since nothing can be wrapped around them."""
        bypassed = read_directly(model)
        supported = {path: m for path, m in structure(model).linears.items() if self.supports(m)}
        return [path for path, module in supported.items() if path in bypassed or self.misfit(module) is not None]

    def pattern_names(self, model: nn.Module, config: TargetedT, sites: Iterable[str]) -> list[str]:
        """Names that `rank_pattern` and `alpha_pattern` may mean."""
        return list(sites)

    def found(self, model: nn.Module, config: TargetedT, shapes: Shapes | None) -> Mapping[str, nn.Module]:
        """Modules that the targets name, in the model's order; with `shapes`, those of a file."""
        candidates = dict(named_base_modules(model))
        bypassed = read_directly(model)
        fit = {
            path: module
            for path, module in candidates.items()
            if self.supports(module) and self.misfit(module) is None and path not in bypassed
        }
        if not config.target_modules:
            return self.held(fit, shapes)
        return find_targets(
            candidates,
            config.target_modules,
            all_linear=[path for path in structure(model).linears if path in fit],
            exclude_modules=config.exclude_modules,
            layers_to_transform=config.layers_to_transform,
            layers_pattern=config.layers_pattern,
            supported=fit,
            why_not=lambda path: self._why_not(candidates[path], bypassed.get(path)),
            from_file=shapes is not None,
        )

    def misfit(self, module: nn.Module) -> str | None:
        """Why a module of a kind that the method adapts is not what its kind promises; None where it is."""
        if is_linear(module):
            return linear_fault(module)
        return table_fault(module) if isinstance(module, nn.Embedding) else None

    def _why_not(self, module: nn.Module, reader: str | None) -> str | None:
        if not self.supports(module):
            return None
        read = f"{reader} computes with its weight itself and passes by what wraps the layer" if reader else None
        return self.misfit(module) or read

    def held(self, supported: Mapping[str, nn.Module], shapes: Shapes | None) -> Mapping[str, nn.Module]:
        """Modules that a file holds tensors for: what counts where it names no targets (in the reference, the default of
        a list of families). Raises `AdapterError` where there is none."""
        found = sites_in_file(supported, shapes or {}, self.tensor_prefix)
        if not found:
            raise AdapterError("target_modules is empty", fix="all-linear, a list of names, or a regular expression")
        tell(f"target_modules names nothing: the {len(found)} modules that the file has tensors for are adapted")
        return found

    def place(
        self, adapter: LayersAdapter, config: TargetedT, path: str, module: nn.Module, shapes: Shapes | None
    ) -> None:
        if self.trained_biases(config) != "none" and has_bias(module):
            selected = SelectedParameters(module, ["bias"])
            adapter.wrap(path, selected)
            # innermost, so that the update's layer sees the base with its trained bias
            module = selected
        adapter.wrap(path, self.layer(config, path, module, shapes))
        assert isinstance(adapter, LinearsAdapter)
        adapter.sites.append(path)
        if weight_view(unwrapped(module)).transposed and "fan_in_fan_out" in config.file_defaults:
            # the reference needs it to know that the weight lies transposed (Conv1D)
            adapter.kept_fields["fan_in_fan_out"] = True

    def finish(self, adapter: LayersAdapter, config: TargetedT, shapes: Shapes | None) -> None:
        assert isinstance(adapter, LinearsAdapter)
        adapter.from_file = shapes is not None
        if self.trained_biases(config) == "all":
            adapted = set(adapter.targets())
            kept = config.modules_to_save or []
            for path, module in list(named_base_modules(adapter.model)):
                if path not in adapted and has_bias(module) and not any(_inside(path, name) for name in kept):
                    adapter.wrap(path, SelectedParameters(module, ["bias"]))
        self.save_modules(adapter, config, shapes)

    def save_modules(self, adapter: LayersAdapter, config: TargetedT, shapes: Shapes | None) -> None:
        """Puts trained copies in the place of `modules_to_save`."""
        from_file = shapes is not None
        train_named_modules(adapter, config.modules_to_save or [], may_lack=from_file, loosely=from_file)


def _routing(model: nn.Module, asked: Iterable[str]) -> dict[str, str]:
    """Routers of a mixture of experts, and the layers inside them: trained only where somebody names them."""
    paths = routers(model)
    owners = [path for path in paths if any(True for _ in model.get_submodule(path).parameters(recurse=False))]
    inside = [path for path in asked if any(_inside(path, router) for router in paths)]
    return dict.fromkeys([*owners, *inside], ROUTES)


def _require_use(config: TargetedConfig, asked: Mapping[str, nn.Module], left_out: Mapping[str, str]) -> None:
    """Every entry of the targets must stand for some module that can be trained."""
    wanted = config.target_modules
    entries = wanted if isinstance(wanted, list) else [ALL_LINEAR if wanted is None else wanted]
    faults = []
    for entry in entries:
        named = [path for path in asked if not isinstance(wanted, list) or names_path(entry, path)]
        if named and all(path in left_out for path in named):
            reasons = ", ".join(sorted({left_out[path] for path in named}))
            text = f"`{entry}` names only layers {reasons}: {', '.join(named[:3])}"
            faults.append(Fault(text, fix="leave it out of target_modules"))
    if faults:
        raise AdapterError("target_modules names layers that cannot learn from text", faults=faults)


def has_bias(module: nn.Module) -> bool:
    """Whether a module owns a bias of its own."""
    return isinstance(module._parameters.get("bias"), nn.Parameter)


def rank_faults(
    path: str, module: nn.Module, r: int, shapes: Shapes | None, tensor: str, *, axis: int = 0, limit: int | None = None
) -> list[Fault]:
    """A rank beyond what the layer allows, or one that the file's tensor (`tensor`, rank along `axis`) contradicts."""
    allowed = min(weight_view(module).shape) if limit is None else limit
    if shapes is None:
        if r > allowed:
            return [Fault(f"r = {r} is larger than `{path}` allows ({allowed})", fix=f"use r <= {allowed}")]
        return []
    key = f"{FILE_PREFIX}{path}.{tensor}"
    shape = shapes.get(key)
    if shape is None:
        return [Fault(f"`{key}` is missing")] if r > allowed else []
    if len(shape) <= axis or shape[axis] != r:
        return [Fault(f"adapter_config.json gives `{path}` rank {r}, its tensor `{tensor}` has shape {list(shape)}")]
    return []


def _inside(path: str, name: str) -> bool:
    return path == name or path.endswith("." + name) or f".{name}." in f".{path}."
