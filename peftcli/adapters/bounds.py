"""How much an adapter from a file may make us allocate: its configuration could ask for anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from peftcli.errors import AdapterError

# methods allocate about what they store; orthogonal bases and start values take a few times that
FACTOR = 4
FREE_VALUES = 1 << 22


class bounded_allocation(TorchDispatchMode):
    """Inside the block, new tensors may hold a few times the values of the base and the adapter's file, not more.

    Raises `AdapterError`, before the memory is asked for.
    """

    def __init__(self, model: nn.Module, shapes: Mapping[str, tuple[int, ...]], *, where: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        known = sum(parameter.numel() for parameter in model.parameters())
        known += sum(math.prod(shape) for shape in shapes.values())
        self._left = FACTOR * known + FREE_VALUES
        self._where = where

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # the meta device gives shapes and no memory
        if str(kwargs.get("device")) != "meta":
            self._left -= _new_values(func, args, kwargs)
        if self._left < 0:
            raise AdapterError(
                "the configuration asks for tensors much larger than the base and the adapter's file",
                where=self._where,
                fix="do not trust this adapter; get it from its own page",
            )
        return func(*args, **kwargs)


def _new_values(func: Any, args: Any, kwargs: Mapping[str, Any]) -> int:
    """How many values an operation that makes a tensor from sizes alone asks for."""
    # a view shares memory, whatever its shape
    if func.is_view:
        return 0
    for position, argument in enumerate(func._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        if argument.name in ("size", "repeats") and isinstance(value, (list, tuple)):
            return math.prod(int(size) for size in value)
        if argument.name == "n" and isinstance(value, int):
            # randperm makes n values, eye at least n squared
            return value * value if "eye" in str(func) else value
    return 0
