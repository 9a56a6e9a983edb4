"""Freeze tuning: trains the base's last k blocks, or named modules, whole; everything else stays frozen.

    y = f(x; W + delta) in the chosen modules        stored as the full new W

Every module that holds parameters runs with float32 copies of them, so that the base itself stays untouched.
Shapes: as the base's. Keys: the plain names of the base's parameters, after `base_model.model.`; tensors that modules
share are one copy and written once. Not in the reference library.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from peftcli.adapters.base import Shapes
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.methods.freeze.config import FreezeConfig
from peftcli.adapters.selection import ModulesMethod
from peftcli.adapters.targets import find_targets, names_path
from peftcli.errors import AdapterError
from peftcli.models.structure import structure


class Freeze(ModulesMethod[FreezeConfig]):
    """Wraps every module with parameters of its own in the chosen part of the model."""

    config_class = FreezeConfig

    def trained(self, model: nn.Module, config: FreezeConfig, shapes: Shapes | None) -> Iterable[str]:
        candidates = dict(named_base_modules(model))
        chosen = _last_blocks(model, config.num_blocks)
        if config.target_modules is not None:
            chosen += find_targets(candidates, config.target_modules, all_linear=structure(model).linears)
        named = config.modules_to_save or []
        chosen += [path for path in candidates if any(names_path(name, path) for name in named)]
        if not chosen:
            raise AdapterError("nothing is left to train", fix="num_layers: 1 trains the last block")
        excluded: list[str] = []
        if config.exclude_modules is not None:
            excluded = list(find_targets(candidates, config.exclude_modules, all_linear=()))
        return [path for path in candidates if _within(path, chosen) and not _within(path, excluded)]


def _within(path: str, parts: Iterable[str]) -> bool:
    return any(path == part or path.startswith(part + ".") for part in parts)


def _last_blocks(model: nn.Module, count: int) -> list[str]:
    """The last `count` blocks of each stack. Raises `AdapterError` where there are fewer."""
    stacks: dict[str, list[str]] = {}
    for path in structure(model).blocks:
        stacks.setdefault(path.rpartition(".")[0], []).append(path)
    # stacks of an encoder-decoder may be unequally deep: as many blocks of each
    fewest = min(map(len, stacks.values()), default=0)
    if count > fewest:
        raise AdapterError(f"num_layers = {count}, and this model has {fewest} blocks", fix=f"num_layers: {fewest}")
    return [path for blocks in stacks.values() for path in blocks[len(blocks) - count :]]


METHOD = Freeze()
