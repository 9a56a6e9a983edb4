"""Which fast paths are on, for as long as a block lasts, and what they did there.

The state belongs to the process and not to a thread: backward passes on a GPU run in threads of torch's own.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch

from peftcli.kernels.names import KERNELS

_STEPS = itertools.count()
"""Of the whole process: no two steps of two runs have one number."""


Facts = WeakKeyDictionary[torch.nn.Module, Any]
"""What was found out once about each model."""


class _State:
    def __init__(self, names: Collection[str], facts: Facts | None = None) -> None:
        self.names = frozenset(names)
        self.step = next(_STEPS)
        self.fallbacks: dict[str, set[str]] = {}
        self.used: set[str] = set()
        self.facts: Facts = WeakKeyDictionary() if facts is None else facts


_NONE = _State(())
_state = _NONE


@contextlib.contextmanager
def using(names: Collection[str], facts: Facts | None = None) -> Iterator[None]:
    """Inside the block these fast paths are taken, and no others; not to be nested in another one that takes some.

    `facts` carries what is `remembered` from one block to the next, for a model that does not change between them."""
    global _state
    before, _state = _state, _State(names, facts)
    try:
        yield
    finally:
        _state = before


def active(name: str) -> bool:
    """Whether a fast path is to be taken now: it is switched on and a gradient is wanted, outside of compiled code."""
    return name in _state.names and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def next_step() -> None:
    """Called before the passes of each optimizer step: whatever was derived from trained tensors is old."""
    _state.step = next(_STEPS)


def current_step() -> int:
    """The number of the step, which no other step of the process has had."""
    return _state.step


def took(name: str) -> None:
    """Notes that a fast path was taken."""
    _state.used.add(name)


def fell_back(name: str, why: str) -> None:
    """Notes why a fast path was not taken where it was switched on."""
    _state.fallbacks.setdefault(name, set()).add(why)


def told() -> dict[str, str]:
    """Name of each fast path that is on in this block -> where it was taken so far, and why not elsewhere."""
    return {name: _told(name) for name in KERNELS if name in _state.names}


def _told(name: str) -> str:
    why = ", ".join(sorted(_state.fallbacks.get(name, ())))
    if name in _state.used:
        return f"taken, not where {why}" if why else "taken"
    return f"not taken: {why}" if why else "not taken: nothing here could use it"


def remembered(model: torch.nn.Module, make: Callable[[], Any]) -> Any:
    """What `make` returns, asked once a model in this block."""
    if model not in _state.facts:
        _state.facts[model] = make()
    return _state.facts[model]
