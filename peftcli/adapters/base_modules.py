"""The base's modules and parameters by their names in the bare model, whatever is wrapped around them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from peftcli.adapters.layers import AdapterPart, StandInBlocks, unwrapped

Place = tuple[nn.Module, str]
"""A module and the name of what it holds."""


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
