"""Methods that wrap modules: how wrappers are put in and taken out, folded into the base, and their life cycle."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from peftcli.adapters.base import FILE_PREFIX, Adapter, Around, Entry, InitContext, Method, Shapes
from peftcli.adapters.base_copies import BaseCopies
from peftcli.adapters.base_modules import (
    Place,
    named_base_modules,
    parent_of,
    shared_places,
)
from peftcli.adapters.config import MethodConfig
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.errors import MergeError
from peftcli.models.weights import require_replaceable

ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class LayersAdapter(Adapter):
    """An adapter that is a set of wrappers, one a path. Several wrappers may be stacked on one path, inner first."""

    def __init__(self, model: nn.Module, config: MethodConfig) -> None:
        super().__init__(model, config)
        self.layers: list[tuple[str, AdapterLayer]] = []
        self._shared: dict[int, list[Place]] | None = None
        self.base_copies = BaseCopies(model, {}, None)
        """What a file brings along of the base itself."""

    def wrap(self, path: str, layer: AdapterLayer) -> None:
        """Puts a wrapper in the place of the module at `path` (which it must hold as its base layer)."""
        for name, part in layer.named_children():
            # parts made with the wrapper (dropout) follow the mode of what it wraps
            if name != "base_layer":
                part.train(layer.training)
        layer.path = path
        for place in self._places(path):
            setattr(*place, layer)
        self.layers.append((path, layer))

    def wrap_innermost(self, path: str, layer: AdapterLayer) -> None:
        """Puts a wrapper of the bare module at `path` under those that stand there already."""
        outer = next(found for other, found in self.layers if other == path)
        layer.path = path
        outer.base_layer = layer
        self.layers.insert(self.layers.index((path, outer)), (path, layer))

    def _places(self, path: str) -> list[Place]:
        """Every place where the module at `path` stands: a module that a model uses twice is adapted in both."""
        if self._shared is None:
            self._shared = shared_places(self.model)
        parent, name = parent_of(self.model, path)
        return self._shared.get(id(unwrapped(parent.get_submodule(name))), [(parent, name)])

    def disk_path(self, path: str, layer: AdapterLayer) -> str:
        """Module path in keys: wrappers that lie around this one show as `base_layer`, as in the reference."""
        depth = 0
        parent, name = parent_of(self.model, path)
        module = getattr(parent, name)
        while module is not layer:
            if not isinstance(module, AdapterLayer):
                return path
            depth += 1
            module = module.base_layer
        return path + ".base_layer" * depth

    def entries(self) -> list[Entry]:
        return [
            Entry(f"{FILE_PREFIX}{self.disk_path(path, layer)}.{name}", tensor)
            for path, layer in self.layers
            for name, tensor in layer.tensors().items()
        ]

    def file_entries(self) -> list[Entry]:
        return [*self.entries(), *self.base_copies.entries()]

    def settle(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.base_copies.settle(tensors, where)

    def initialise(self, context: InitContext) -> None:
        for _, layer in self.layers:
            layer.initialise(context)

    def set_enabled(self, enabled: bool) -> None:
        self.enabled = enabled
        self.base_copies.show(enabled)
        for _, layer in self.layers:
            layer.enabled = enabled

    def remove(self) -> None:
        for path, layer in reversed(self.layers):
            parent, name = parent_of(self.model, path)
            assert getattr(parent, name) is layer, f"{path} was replaced by other code"
            for place in self._places(path):
                setattr(*place, layer.base_layer)
        self.layers.clear()
        self.base_copies.show(False)

    def targets(self) -> list[str]:
        return list(dict.fromkeys(path for path, _ in self.layers))

    # -- merging -------------------------------------------------------------------------------------------------

    def require_mergeable(self) -> None:
        for layer in {type(layer): layer for _, layer in self.layers}.values():
            layer.merged()

    def merge(self, around: Around | None = None) -> None:
        """Computes every new weight in float32, rounds once, and replaces the parameters only when all are finite.

        A weight that another module shares (tied embeddings) is given to this module alone: the caller settles what
        that means for the others.
        """
        replaced: list[tuple[nn.Module, str, nn.Parameter | None]] = []
        try:
            for wrappers in self._by_base():
                if around is None:
                    self._merge_stack(wrappers, replaced)
                    continue
                path, layer = wrappers[0]
                with around(path, unwrapped(layer)):
                    # nothing of what was there before is kept: it need not fit into memory
                    self._merge_stack(wrappers, [])
        # Ctrl-C too: a merge is whole or not at all
        except BaseException:
            for base, name, old in reversed(replaced):
                _set_parameter(base, name, old)
            raise
        self.base_copies.keep()
        self.remove()

    def _by_base(self) -> list[list[tuple[str, AdapterLayer]]]:
        """The wrappers of each module of the base together, inner first."""
        stacks: dict[int, list[tuple[str, AdapterLayer]]] = {}
        for path, layer in self.layers:
            stacks.setdefault(id(unwrapped(layer)), []).append((path, layer))
        return list(stacks.values())

    def _merge_stack(
        self, wrappers: list[tuple[str, AdapterLayer]], replaced: list[tuple[nn.Module, str, nn.Parameter | None]]
    ) -> None:
        """Each wrapper reads what the one inside it has made, in float32: only the end is rounded to the base's type."""
        first: dict[str, torch.dtype] = {}
        for path, layer in wrappers:
            base = unwrapped(layer)
            merged = layer.merged()
            if "weight" in merged:
                require_replaceable(base, path)
            for name, value in merged.items():
                if not torch.isfinite(value).all():
                    raise MergeError(
                        f"the merged weight of `{path}.{name}` is not finite",
                        fix="the adapter is broken: train it again",
                    )
                old = _get_parameter(base, name)
                reference = old if old is not None else next(base.parameters())
                first.setdefault(name, reference.dtype)
                replaced.append((base, name, old))
                _set_parameter(base, name, _frozen(value.to(device=reference.device, dtype=torch.float32)))
        path, layer = wrappers[0]
        for name, dtype in first.items():
            _round_parameter(unwrapped(layer), name, dtype, f"{path}.{name}")


def _get_parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    owner, leaf = _owner(module, name)
    return owner._parameters.get(leaf)


def _set_parameter(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
    owner, leaf = _owner(module, name)
    owner.register_parameter(leaf, value)


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    *parents, leaf = name.split(".")
    for part in parents:
        module = module.get_submodule(part)
    return module, leaf


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.contiguous(), requires_grad=False)


def _round_parameter(module: nn.Module, name: str, dtype: torch.dtype, shown: str) -> None:
    exact = module.get_parameter(name)
    rounded = exact.detach().to(dtype)
    if not torch.isfinite(rounded).all():
        raise MergeError(f"the merged weight of `{shown}` overflows {dtype}", fix="merge with --dtype float32")
    _set_parameter(module, name, _frozen(rounded))


class LayersMethod(Method, Generic[ConfigT]):
    """A method whose adapter is a set of wrappers: subclasses choose the sites and make the wrapper for each."""

    def build(self, model: nn.Module, config: ConfigT, shapes: Shapes | None) -> LayersAdapter:
        adapter = self.new_adapter(model, config)
        try:
            # of the model as the adapter has grown it
            adapter.left_out = {} if shapes is not None else self.left_out(model, config)
            adapter.base_copies = BaseCopies(model, dict(named_base_modules(model)), shapes)
            for path, module in self.sites(model, config, shapes).items():
                self.place(adapter, config, path, module, shapes)
            self.finish(adapter, config, shapes)
            adapter.base_copies.leave({entry.key for entry in adapter.entries()})
        # Ctrl-C too: the model is left as it was found, and the exception goes on
        except BaseException:
            adapter.remove()
            raise
        return adapter

    def new_adapter(self, model: nn.Module, config: ConfigT) -> LayersAdapter:
        """An adapter without layers yet, to which `place` adds them one by one."""
        return LayersAdapter(model, config)

    def left_out(self, model: nn.Module, config: ConfigT) -> dict[str, str]:
        """Path of each module that the configuration could mean and that is not adapted -> why; asked before `sites`.

        A file's modules are those that it holds tensors for: nothing is left out of them.
        """
        return {}

    @abstractmethod
    def sites(self, model: nn.Module, config: ConfigT, shapes: Shapes | None) -> Mapping[str, nn.Module]:
        """Paths and modules to wrap."""

    def place(
        self, adapter: LayersAdapter, config: ConfigT, path: str, module: nn.Module, shapes: Shapes | None
    ) -> None:
        """Wraps one site; a method that stacks wrappers overrides it."""
        adapter.wrap(path, self.layer(config, path, module, shapes))

    @abstractmethod
    def layer(self, config: ConfigT, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        """The wrapper for one site."""

    def finish(self, adapter: LayersAdapter, config: ConfigT, shapes: Shapes | None) -> None:
        """Anything beside the sites (modules to save, trained biases)."""
