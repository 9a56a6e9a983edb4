"""`layer_replication`: a deeper model whose blocks repeat the base's, each with an update of its own.

The repeated blocks are copies that share the base's weights; the model's own list of blocks stays as it was and comes
back when the adapter is switched off or taken out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import nn

from peftcli.adapters.base_modules import parent_of
from peftcli.adapters.layers import StandInBlocks
from peftcli.errors import AdapterError
from peftcli.models.structure import structure

_DEPTH_FIELDS = ("num_hidden_layers", "n_layer", "num_layers")


class Replication:
    """The grown list of blocks on one model."""

    def __init__(self, model: nn.Module, path: str, order: Sequence[int]) -> None:
        self.path = path
        self.owner, self.name = parent_of(model, path)
        bare = self.owner.get_submodule(self.name)
        assert isinstance(bare, nn.ModuleList)
        self.bare = bare
        self.grown = StandInBlocks((_clone(bare[old], new) for new, old in enumerate(order)), bare)
        self.settings = _settings(model, order)
        self.switch(True)

    @classmethod
    def of(cls, model: nn.Module, ranges: Sequence[Sequence[int]]) -> Replication:
        """Puts the grown list on the model. Raises `AdapterError` where it has no single list, or a shorter one."""
        paths = {path.rpartition(".")[0] for path in structure(model).blocks}
        if len(paths) != 1:
            raise AdapterError(f"layer_replication needs a model with one list of blocks; this one has {len(paths)}")
        depth = len(structure(model).blocks)
        wrong = [list(pair) for pair in ranges if not pair[0] < pair[1] <= depth]
        if wrong:
            raise AdapterError(
                f"layer_replication: {wrong} lie outside the {depth} blocks", fix="ranges are [first, end), first < end"
            )
        return cls(model, paths.pop(), list(chain.from_iterable(range(pair[0], pair[1]) for pair in ranges)))

    def switch(self, grown: bool) -> None:
        """The grown list, or the model's own."""
        setattr(self.owner, self.name, self.grown if grown else self.bare)
        for config, field, own, changed in self.settings:
            setattr(config, field, changed if grown else own)

    def settle(self) -> None:
        """Makes the grown model plain: weights that copies still share become their own."""
        seen: set[int] = set()
        for module in self.grown.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) in seen:
                    fresh = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
                    module.register_parameter(name, fresh)
                seen.add(id(parameter))
        setattr(self.owner, self.name, nn.ModuleList(self.grown))


def _clone(block: nn.Module, index: int) -> nn.Module:
    """A copy that shares every tensor; its place in the cache is its own."""
    # `deepcopy` takes what its memo holds for copied already: tensors are shared, modules are new
    shared = {id(tensor): tensor for tensor in chain(block.parameters(), block.buffers())}
    clone = copy.deepcopy(block, shared)
    for module in clone.modules():
        if isinstance(module.__dict__.get("layer_idx"), int):
            module.__dict__["layer_idx"] = index
    return clone


def _settings(model: nn.Module, order: Sequence[int]) -> list[tuple[Any, str, Any, Any]]:
    """Fields of the model's configuration that follow its depth: (configuration, field, own value, grown value)."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    found: list[tuple[Any, str, Any, Any]] = [
        (config, field, getattr(config, field), len(order))
        for field in _DEPTH_FIELDS
        if isinstance(getattr(config, field, None), int)
    ]
    # by its kind a model chooses the mask of each block
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        found.append((config, "layer_types", kinds, [kinds[old] for old in order]))
    return found
