"""Names of layers as a configuration file has them, and the layers of this model that they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from peftcli.adapters.adapter_file import AdapterFile
from peftcli.adapters.base import FILE_PREFIX, Shapes
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.oddities import tell
from peftcli.adapters.target_config import TargetedConfig
from peftcli.adapters.targets import names_path, pattern_value
from peftcli.models.conversions import Conversions

TargetedT = TypeVar("TargetedT", bound=TargetedConfig)
"""The configuration of one method, which a function gives back as it came."""


def with_present_names(model: nn.Module, config: TargetedT, file: AdapterFile, prefix: str) -> TargetedT:
    """The configuration with the names that transformers gave modules since; patterns become the modules that the file
    holds."""
    modules = dict(named_base_modules(model))
    held = sites_in_file(modules, file.shapes, prefix)
    changes: dict[str, Any] = {}
    if isinstance(config.target_modules, str):
        if file.renamed:
            # a pattern over old names may match nothing; the modules of the file are known
            changes["target_modules"] = sorted(held)
    elif config.target_modules:
        changes["target_modules"] = [_present(model, entry, modules, held) for entry in config.target_modules]
    if config.modules_to_save:
        changes["modules_to_save"] = [_present(model, entry, modules, modules) for entry in config.modules_to_save]
    changes = {field: value for field, value in changes.items() if value != getattr(config, field)}
    return config.model_copy(update=changes) if changes else config


def _present(model: nn.Module, entry: str, modules: Mapping[str, Any], holders: Mapping[str, Any]) -> str:
    """An entry that names no module, by the name that it has now, where one of `holders` has it."""
    if any(names_path(entry, path) for path in modules):
        return entry
    present = Conversions(model).present_name(f"{entry}.weight").removesuffix(".weight")
    if not any(names_path(present, path) for path in holders):
        return entry
    tell(f"`{entry}` is `{present}` in this transformers: read as that, though Hugging Face PEFT leaves it out")
    return present


def sites_in_file(supported: Mapping[str, nn.Module], shapes: Shapes, prefix: str) -> dict[str, nn.Module]:
    """Modules that the keys of a file have tensors for, whose names begin with `prefix`; none without a prefix."""
    if not prefix:
        return {}
    paths = {
        path for path, _, name in (key.removeprefix(FILE_PREFIX).rpartition(f".{prefix}") for key in shapes) if name
    }
    return {path: module for path, module in supported.items() if path in paths}


def shortest_names(paths: Sequence[str], model: nn.Module) -> list[str]:
    """Leaf names when they name exactly these paths in the whole model, else the paths; sorted, so files repeat."""
    leaves = sorted({path.rsplit(".", 1)[-1] for path in paths})
    named = {path for path, module in named_base_modules(model) if path and path.rsplit(".", 1)[-1] in leaves}
    # a leaf name is short for a reader, and wrong as soon as another module of the model has it too
    return leaves if named == set(paths) else sorted(paths)


def order_free(pattern: Mapping[str, int | float], paths: Sequence[str]) -> dict[str, int | float]:
    """The pattern, or whole paths in its place when its meaning hangs on the order of its keys (JSON sorts them)."""
    by_order = {path: pattern_value(pattern, path, None) for path in paths}
    # read with its keys as JSON sorts them, the pattern must give what it gives here
    by_name = {path: pattern_value(dict(sorted(pattern.items())), path, None) for path in paths}
    if by_order == by_name:
        return dict(pattern)
    return {path: value for path, value in by_order.items() if value is not None}
