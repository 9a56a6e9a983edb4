"""Training existing tensors through copies, so that the base stays untouched: BitFit, norms, `modules_to_save`, full."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from peftcli.adapters.base import FILE_PREFIX, Around, Entry, InitContext, Shapes
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.config import MethodConfig
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.layers_method import LayersAdapter, LayersMethod
from peftcli.adapters.targets import names_path
from peftcli.errors import AdapterError, Fault
from peftcli.models.storage import storage_of
from peftcli.models.trace import participation
from peftcli.models.weights import UnadaptedWeight

ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class SelectedParameters(AdapterLayer):
    """Runs its base layer with trainable float32 copies in the place of some of its parameters.

    `names` are parameter names inside the base layer (`bias`, `dense.weight`). A copy is rounded to the base's type at
    each use, so that gradients reach the float32 master. `shared` maps a base parameter to the copy that stands for it
    elsewhere: tied tensors stay tied.
    """

    def __init__(
        self, base_layer: nn.Module, names: Iterable[str], shared: dict[nn.Parameter, nn.Parameter] | None = None
    ) -> None:
        super().__init__(base_layer)
        self.names = tuple(names)
        self.copies = nn.ParameterDict()
        shared = {} if shared is None else shared
        for name in self.names:
            original = unwrapped(base_layer).get_parameter(name)
            _require_numbers(unwrapped(base_layer), name)
            if original not in shared:
                # float32 whatever the base's type: steps smaller than its rounding must add up
                shared[original] = nn.Parameter(torch.empty_like(original, dtype=torch.float32))
            self.copies[_slot(name)] = shared[original]

    def adapted(self, *args: Any, **kwargs: Any) -> Any:
        """The base layer's own forward, with the copies in the place of its parameters."""
        base = unwrapped(self.base_layer)
        values = {name: self.copies[_slot(name)].to(base.get_parameter(name).dtype) for name in self.names}
        return functional_call(self.base_layer, values, args, kwargs)

    def shown(self, name: str, parameter: nn.Parameter) -> Tensor:
        """The copy, so that a model that computes with the parameter itself computes with the trained one.

        Where parameters of parts inside are trained too, it is guarded: those a model would reach past this wrapper.
        """
        if any("." in inner for inner in self.names):
            return UnadaptedWeight.of(parameter, self.path)
        return self.copies[_slot(name)].to(parameter.dtype) if name in self.names else parameter

    def tensors(self) -> dict[str, Tensor]:
        return {name: self.copies[_slot(name)] for name in self.names}

    def initialise(self, context: InitContext) -> None:
        """Copies of the base's values."""
        with torch.no_grad():
            for name in self.names:
                self.copies[_slot(name)].copy_(unwrapped(self.base_layer).get_parameter(name))

    def merged(self) -> dict[str, Tensor]:
        return {name: self.copies[_slot(name)].detach() for name in self.names}


def _require_numbers(module: nn.Module, name: str) -> None:
    """Raises `AdapterError` for a weight that is packed: no step is small enough for its few values."""
    path, _, leaf = name.rpartition(".")
    storage = storage_of(module.get_submodule(path))
    if leaf == "weight" and storage.is_packed:
        raise AdapterError(
            f"weights stored as {storage.name} cannot be trained themselves, only updates beside them",
            fix="use lora or another method that adds to frozen weights, or leave model.quantization out",
        )


def _slot(name: str) -> str:
    # a ParameterDict key may not hold a dot
    return name.replace(".", "__")


class SelectionAdapter(LayersAdapter):
    """An adapter made of trained copies only; keys on disk are the plain names of the base's parameters."""

    def __init__(self, model: nn.Module, config: MethodConfig) -> None:
        super().__init__(model, config)
        self.shared: dict[nn.Parameter, nn.Parameter] = {}
        """Base parameter -> its copy: modules that share a tensor share the copy."""

    def entries(self) -> list[Entry]:
        return selected_entries(self.layers)

    def merge(self, around: Around | None = None) -> None:
        """As in the base class; tensors that were shared in the base are shared again."""
        places: dict[int, list[tuple[nn.Module, str]]] = {}
        # noted first: `super().merge()` takes the wrappers away
        for _, layer in self.layers:
            for name, copied in layer.tensors().items():
                places.setdefault(id(copied), []).append((unwrapped(layer), name))
        super().merge(around)
        # tensors that were one in the base are one again
        for (first, name), *others in places.values():
            for module, other_name in others:
                module.register_parameter(other_name, first.get_parameter(name))


class ModulesMethod(LayersMethod[ConfigT], Generic[ConfigT]):
    """A method that trains modules whole: each one with parameters of its own runs with copies of them.

    Wrapping the innermost modules, not whole blocks, keeps checkpointed blocks right, which run twice.
    """

    @abstractmethod
    def trained(self, model: nn.Module, config: ConfigT, shapes: Shapes | None) -> Iterable[str]:
        """Paths of modules to train, those inside them included. Raises `AdapterError` where there is none."""

    def new_adapter(self, model: nn.Module, config: ConfigT) -> SelectionAdapter:
        return SelectionAdapter(model, config)

    def sites(self, model: nn.Module, config: ConfigT, shapes: Shapes | None) -> Mapping[str, nn.Module]:
        modules = dict(named_base_modules(model))
        paths = [path for path in self.trained(model, config, shapes) if _names(model, path, modules[path], shapes)]
        if "" in paths:
            raise AdapterError(f"{config.name} cannot train parameters that belong to no part of the model")
        return {path: modules[path] for path in paths}

    def left_out(self, model: nn.Module, config: ConfigT) -> dict[str, str]:
        modules = dict(named_base_modules(model))
        return idle_modules(model, {path: _own_names(modules[path]) for path in self.trained(model, config, None)})

    def place(
        self, adapter: LayersAdapter, config: ConfigT, path: str, module: nn.Module, shapes: Shapes | None
    ) -> None:
        assert isinstance(adapter, SelectionAdapter)
        adapter.wrap(path, SelectedParameters(module, _names(adapter.model, path, module, shapes), adapter.shared))

    def layer(self, config: ConfigT, path: str, module: nn.Module, shapes: Shapes | None) -> AdapterLayer:
        return SelectedParameters(module, _own_names(module))


def _names(model: nn.Module, path: str, module: nn.Module, shapes: Shapes | None) -> list[str]:
    """Own parameters that are trained: those that take part in the answer, and what a file holds."""
    idle = participation(model).idle
    return [
        name
        for name in _own_names(unwrapped(module))
        if f"{path}.{name}" not in idle or (shapes is not None and f"{FILE_PREFIX}{path}.{name}" in shapes)
    ]


def idle_modules(model: nn.Module, names: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Path of each module of which a named parameter takes no part in the answer -> why."""
    idle = participation(model).idle
    return {path: idle[f"{path}.{name}"] for path, own in names.items() for name in own if f"{path}.{name}" in idle}


def _own_names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters(recurse=False)]


def selected_entries(layers: Iterable[tuple[str, AdapterLayer]]) -> list[Entry]:
    """Entries of copies under the plain names that the tensors have in the base; a shared copy is written once."""
    found: list[Entry] = []
    seen: set[int] = set()
    for path, layer in layers:
        for name, tensor in layer.tensors().items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found.append(Entry(f"{FILE_PREFIX}{path}.{name}" if path else f"{FILE_PREFIX}{name}", tensor))
    return found


def bias_in_use(module: nn.Module) -> Tensor | None:
    """The bias that a linear layer under this wrapper adds to its answer: the trained copy where there is one."""
    while isinstance(module, AdapterLayer):
        if isinstance(module, SelectedParameters) and module.enabled and "bias" in module.names:
            copied: Tensor = module.copies[_slot("bias")]
            return copied.to(unwrapped(module).get_parameter("bias").dtype)
        module = module.base_layer
    bias: Tensor | None = module._parameters.get("bias")
    return bias


def wrap_named_modules(
    adapter: LayersAdapter, names: Iterable[str], *, tie: bool = True, loosely: bool = False
) -> list[str]:
    """Wraps every module that an entry of `modules_to_save` names, all its parameters trained; returns unmatched names.

    `tie`: tensors that modules share in the base are one copy; else each module has its own. `loosely`: by the
    reference's rule, for files: `norm` names every module whose path ends so, `input_layernorm` too.
    """
    shared: dict[nn.Parameter, nn.Parameter] = {}
    modules = {path: module for path, module in named_base_modules(adapter.model) if path}
    found = {
        entry: [path for path in modules if (path.endswith(entry) if loosely else names_path(entry, path))]
        for entry in names
    }
    every = list(dict.fromkeys(chain.from_iterable(found.values())))
    # the rule for files ("ends so") often names parts and wholes, and there the outer one is trained
    inner = [path for path in every if any(path.startswith(f"{other}.") for other in every)]
    if inner and not loosely:
        raise AdapterError(
            f"modules_to_save names `{inner[0]}` and a module that it is part of",
            fix="name the outer one alone, which brings its parts along, or the inner one alone",
        )
    for path in every:
        parameter_names = [name for name, _ in modules[path].named_parameters()]
        if parameter_names and path not in inner:
            adapter.wrap(path, SelectedParameters(modules[path], parameter_names, shared if tie else {}))
    return [entry for entry, paths in found.items() if not paths]


def train_named_modules(
    adapter: LayersAdapter, names: Iterable[str], *, may_lack: bool = False, tie: bool = True, loosely: bool = False
) -> None:
    """Puts trained copies in the place of `modules_to_save`, for every method. `tie`, `loosely`: as above.

    `may_lack`: for files of the reference, which list every name that a head may have; of a recipe's names each must be
    there. Raises `AdapterError` for those that are not.
    """
    unmatched = wrap_named_modules(adapter, names, tie=tie, loosely=loosely)
    if unmatched and not may_lack:
        raise AdapterError(
            "modules_to_save names modules that this model does not have",
            faults=[Fault(f"modules_to_save: `{name}` matches nothing") for name in unmatched],
        )
