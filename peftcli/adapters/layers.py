"""Methods that wrap modules: the wrapper, how it is put in and taken out, and the life cycle around it."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from peftcli.adapters.base import FILE_PREFIX, Adapter, Around, Entry, InitContext, Method, Shapes
from peftcli.adapters.base_copies import BaseCopies
from peftcli.adapters.config import MethodConfig
from peftcli.errors import MergeError
from peftcli.models.weights import UnadaptedWeight, require_replaceable

ConfigT = TypeVar("ConfigT", bound=MethodConfig)


Place = tuple[nn.Module, str]
"""A module and the name of what it holds."""


class AdapterLayer(nn.Module):
    """Stands in a module's place and holds it as `base_layer`; never edits it.

    Attributes of the base layer (`weight`, `bias`, `in_features`, `layer_idx`) are reachable through the wrapper, since
    models read them; inside a forward pass its parameters are to look at only while the adapter is on, since computing
    with them would pass by it.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.enabled = True
        self.path = ""
        """Path of the base layer in the bare model, once the wrapper stands there."""
        self.training = base_layer.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            # past wrappers in between: their attributes are their own
            base_layer = super().__getattr__("base_layer")
            assert isinstance(base_layer, nn.Module)
            value = getattr(unwrapped(base_layer), name)
            if isinstance(value, nn.Parameter) and self.enabled and _inside_a_forward():
                return self.shown(name, value)
            return value

    def shown(self, name: str, parameter: nn.Parameter) -> Tensor:
        """What a forward pass of the model sees as a parameter of the base layer while the adapter is on.

        Around a part with layers of its own (a block) the parameters are no business of the wrapper.
        """
        is_leaf = not any(True for _ in unwrapped(self).children())
        return UnadaptedWeight.of(parameter, self.path) if is_leaf else parameter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What stands in the base layer's place answers: `adapted`, or the base layer itself while switched off."""
        return self.adapted(*args, **kwargs) if self.enabled else self.base_layer(*args, **kwargs)

    @abstractmethod
    def adapted(self, *args: Any, **kwargs: Any) -> Any:
        """The answer with the adapter on, from the inputs that the model gives the base layer; it calls `base_layer`
        itself, with every argument, and returns what that returns (type and shape included)."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Name after the module path on disk (`lora_A.weight`) -> live tensor; parameters are trained, others not."""

    @abstractmethod
    def initialise(self, context: InitContext) -> None:
        """Start values, drawn from `context.generator` only."""

    @abstractmethod
    def merged(self) -> dict[str, Tensor]:
        """New float32 values of the base layer's parameters, by their name there, in the layout stored there.

        Raises `MergeError` when this layer has no weight-space form.
        """

    def low_rank_update(self) -> tuple[Tensor, Tensor] | None:
        """(L (out, r), R (r, in)) whose product is all that the layer changes, scaling included; None where the
        change has another form. What is asked of `merged()` costs a matrix of the weight's size."""
        return None

    def update_scale(self) -> float:
        """What a low-rank update is multiplied by, for who needs its factors without it; 1 where nothing is."""
        return 1.0

    def kernels(self) -> frozenset[str]:
        """Names of the fast paths that the layer takes in training where they are on; none for most."""
        return frozenset()

    def extra_repr(self) -> str:
        return f"enabled={self.enabled}"


def _inside_a_forward() -> bool:
    """Whether some module is being called: who reads a parameter from outside wants the base's.

    While torch compiles there is no such stack, and the parameter is the base's too.
    """
    if torch.compiler.is_compiling():
        return False
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is _CALL:
            return True
        frame = frame.f_back
    return False


_CALL = nn.Module._call_impl.__code__
"""The code that runs every module's forward, read once: an AttributeError here where torch no longer has it."""


class AdapterPart(nn.Module):
    """A module of an adapter that hangs on the model beside the base's own modules."""


class StandInBlocks(nn.ModuleList):
    """Blocks in the place of a model's own list of blocks, which is kept as `bare`."""

    def __init__(self, blocks: Iterable[nn.Module] = (), bare: nn.ModuleList | None = None) -> None:
        super().__init__(blocks)
        self._bare = (bare,)  # in a tuple: kept, not a part of this module

    @property
    def bare(self) -> nn.ModuleList | None:
        """The model's own list; None where it has none."""
        return self._bare[0]


def unwrapped(module: nn.Module) -> nn.Module:
    """The module of the base under any number of wrappers."""
    while isinstance(module, AdapterLayer):
        module = module.base_layer
    return module


def named_base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Paths as in the bare model and the modules there, whatever is wrapped."""
    return _walk(model, bare=False)


def _walk(model: nn.Module, *, bare: bool) -> Iterator[tuple[str, nn.Module]]:
    """`bare`: past blocks that stand in for the model's own."""
    seen: set[int] = set()

    def walk(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        module = unwrapped(module)
        if bare and isinstance(module, StandInBlocks) and module.bare is not None:
            module = module.bare
        if id(module) in seen:
            return
        seen.add(id(module))
        yield path, module
        for name, child in module.named_children():
            if not isinstance(child, AdapterPart):
                yield from walk(child, f"{path}.{name}" if path else name)

    return walk(model, "")


def named_base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of the base by their names in the bare model; shared ones once."""
    return ((name, module._parameters[leaf]) for name, module, leaf in base_places(model))  # type: ignore[misc]


def base_places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name in the bare model of each parameter of the base, the module that holds it and its name there; shared ones
    once."""
    seen: set[int] = set()
    for path, module in _walk(model, bare=True):
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield (f"{path}.{name}" if path else name), module, name


def parent_of(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds `path`, seen through wrappers, and the attribute name."""
    *parents, name = path.split(".")
    module = model
    for part in parents:
        module = unwrapped(module).get_submodule(part)
    return unwrapped(module), name


def shared_places(model: nn.Module) -> dict[int, list[Place]]:
    """Holders and names of each module of the base that stands in more than one place, by its id."""
    places: dict[int, list[Place]] = {}
    for _, parent in named_base_modules(model):
        for name, child in parent._modules.items():
            if child is not None and not isinstance(child, AdapterPart):
                places.setdefault(id(unwrapped(child)), []).append((parent, name))
    return {key: found for key, found in places.items() if len(found) > 1}


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
