"""Blocks that are copies of each other but for the values of their weights: what holds for some holds for the rest.

A model of eighty equal layers tells with three of them what it is made of; the others are passed by. Alikeness is read
from the modules themselves: their types, the shapes of their tensors, and their settings.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from peftcli.models.weights import is_linear

_PLACE = re.compile(r"(layer|block)?_?(idx|index|id|number|num)$")
"""Attributes that say where a layer stands; those are different in layers that are otherwise the same."""
WORTH_PASSING = 8
"""Fewer layers than this are not passed by: then all run."""
_PLAIN = (bool, int, float, str, type(None))


def listed_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> member of the outermost module lists that hold linear layers (T5 has two such lists, most models one)."""
    found: dict[str, nn.Module] = {}
    lists: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{outer}.") for outer in lists):
            continue
        members = dict(module.named_children())
        if not members or all(is_linear(member) for member in members.values()):
            continue
        if all(any(is_linear(part) for part in member.modules()) for member in members.values()):
            lists.append(path)
            found |= {f"{path}.{name}": member for name, member in members.items()}
    return found


def groups_of(blocks: Sequence[nn.Module], note: Callable[[int], Hashable] = lambda place: None) -> list[list[int]]:
    """The places of `blocks` that are alike, in order of their first. `note`: what else must be equal, by place."""
    found: dict[Hashable, list[int]] = {}
    for place, block in enumerate(blocks):
        found.setdefault((_nature(block), note(place)), []).append(place)
    return list(found.values())


def _nature(block: nn.Module) -> Hashable:
    return tuple((re.sub(r"\d+", "#", path), _own_nature(module)) for path, module in block.named_modules())


def _own_nature(module: nn.Module) -> Hashable:
    tensors = {**module._parameters, **module._buffers}
    shapes = tuple((name, tuple(t.shape), t.dtype, t.requires_grad) for name, t in tensors.items() if t is not None)
    settings = tuple(
        (name, re.sub(r"\d+", "#", value) if isinstance(value, str) else value)
        for name, value in sorted(vars(module).items())
        if isinstance(value, _PLAIN) and not _PLACE.search(name)
    )
    hooks = tuple(len(getattr(module, name)) for name in ("_forward_hooks", "_forward_pre_hooks"))
    return type(module), shapes, settings, hooks


class Few:
    """The layers of a model of which few run: of each kind the first two and the last."""

    def __init__(self, model: nn.Module) -> None:
        layers = listed_layers(model)
        self.paths, self.layers = list(layers), list(layers.values())
        self.groups = groups_of(self.layers)
        self.kept = {place for group in self.groups for place in (*group[:2], group[-1])}
        passed = [place for place in range(len(self.layers)) if place not in self.kept]
        self._prefixes = tuple(f"{self.paths[place]}." for place in passed)
        own = {id(tensor) for place in passed for tensor in self.layers[place].parameters()}
        # what a layer shares with one that runs is seen there
        self._tensors = own - {id(tensor) for place in self.kept for tensor in self.layers[place].parameters()}

    @property
    def saves(self) -> bool:
        """Whether enough layers are passed by to be worth it."""
        return len(self._prefixes) >= WORTH_PASSING

    def passes(self, path: str) -> bool:
        """Whether what lies at a path is inside of a layer that does not run."""
        return path.startswith(self._prefixes)

    def passes_tensor(self, tensor: Tensor) -> bool:
        """Whether a parameter belongs to layers that do not run alone."""
        return id(tensor) in self._tensors

    def running(self) -> contextlib.AbstractContextManager[None]:
        """Inside, only those few run."""
        return passed_by(self.layers, self.groups, self.kept)

    def agree(self, paths: Collection[str]) -> bool:
        """Whether of each kind the layers that run have the same among `paths`, so that they may speak for the rest."""
        inside = [[self._inside(place, paths) for place in group if place in self.kept] for group in self.groups]
        return all(len(set(found)) == 1 for found in inside)

    def _inside(self, place: int, paths: Collection[str]) -> frozenset[str]:
        prefix = f"{self.paths[place]}."
        return frozenset(path.removeprefix(prefix) for path in paths if path.startswith(prefix))

    def spread(self, path: str) -> list[str]:
        """A path, and the same place in every layer that does not run and is of the kind of the one it lies in."""
        for group in self.groups:
            first = f"{self.paths[group[0]]}."
            if path.startswith(first):
                rest = path.removeprefix(first)
                return [path, *(f"{self.paths[place]}.{rest}" for place in group if place not in self.kept)]
        return [path]


@contextlib.contextmanager
def passed_by(blocks: Sequence[nn.Module], groups: Sequence[Sequence[int]], kept: Collection[int]) -> Iterator[None]:
    """Inside, blocks at places outside of `kept` hand their input on, in the form in which the one alike before them
    answered. The first of each group is to be among the kept."""
    answers: dict[int, Any] = {}
    before = [vars(block).get("forward") for block in blocks]
    for number, group in enumerate(groups):
        for place in group:
            run = _noting if place in kept else _passing
            blocks[place].forward = run(blocks[place].forward, answers, number)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def _noting(forward: Callable[..., Any], answers: dict[int, Any], number: int) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        answer = forward(*args, **kwargs)
        # shapes alone: the tensors themselves are not to live longer for being remembered
        answers[number] = tree_map(lambda leaf: leaf.shape if isinstance(leaf, Tensor) else leaf, answer)
        return answer

    return run


def _passing(_forward: Callable[..., Any], answers: dict[int, Any], number: int) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        hidden = next(leaf for leaf in given if leaf.is_floating_point())
        leaves, form = tree_flatten(answers[number], is_leaf=lambda leaf: isinstance(leaf, _Size))
        return tree_unflatten([_like(leaf, hidden, given) for leaf in leaves], form)

    return run


_Size = type(Tensor().shape)


def _like(leaf: Any, hidden: Tensor, given: Sequence[Tensor]) -> Any:
    if not isinstance(leaf, _Size):
        return leaf
    if leaf == hidden.shape:
        return hidden
    return next((tensor for tensor in given if tensor.shape == leaf), hidden.new_zeros(leaf))
