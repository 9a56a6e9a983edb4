"""Changed rows of an embedding table, seen through the embedding's own forward: scaled, normed, shifted as it likes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.errors import AdapterError
from peftcli.models.weights import is_weight_of

Change = Callable[[Tensor, Tensor], Tensor]
"""Ids (...) and the rows that the base looks up for them (..., embedding_dim) -> the rows to use instead."""


def look_up(layer: AdapterLayer, change: Change, *args: Any, **kwargs: Any) -> Any:
    """The answer of the wrapped embedding with changed rows in its table, whatever its forward makes of them."""
    base = unwrapped(layer)
    # the plain case needs no mode over all functions of torch
    if type(base).forward is nn.Embedding.forward:
        return change(args[0], layer.base_layer(*args, **kwargs))
    with _ChangedRows(base, change) as changed:
        answer = layer.base_layer(*args, **kwargs)
    if not changed.lookups:
        raise AdapterError(
            f"`{layer.path}` ({type(base).__name__}) computes its answer in another way than by looking up rows of its "
            "table: the adapter there would have no effect",
            fix="leave it out of target_modules",
        )
    return answer


class _ChangedRows(TorchFunctionMode):
    """Inside, every lookup in the table of a module is followed by the change; nothing else is touched."""

    def __init__(self, module: nn.Module, change: Change) -> None:
        super().__init__()
        self._module = module
        self._change = change
        self.lookups = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # `is not`: the function itself, however a model imports it
        if func is not F.embedding:
            return result
        ids, table = _operands(*args, **(kwargs or {}))
        if not is_weight_of(table, self._module):
            return result
        self.lookups += 1
        return self._change(ids, result)


def _operands(input: Tensor, weight: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
    """The first two arguments of `F.embedding`, under torch's own names."""
    return input, weight
