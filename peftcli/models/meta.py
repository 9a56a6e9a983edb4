"""Forward passes on the meta device, where tensors have shapes and no values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """In it autocast is off on the meta device. torch has none there and raises where it is asked about it, as
    transformers 5.3 asks in every rotary embedding."""
    asked = torch.is_autocast_enabled

    def is_enabled(device_type: str | None = None) -> bool:
        return device_type != "meta" and (asked() if device_type is None else asked(device_type))

    torch.is_autocast_enabled = is_enabled
    try:
        yield
    finally:
        torch.is_autocast_enabled = asked


@contextlib.contextmanager
def without_values(*, conditions: bool = True) -> Iterator[None]:
    """In it what depends on values runs too: conditions hold (or none of them does), numbers are one, every element is
    non-zero."""
    with without_autocast(), _ValuesTaken(conditions):
        yield


class _ValuesTaken(TorchDispatchMode):
    def __init__(self, conditions: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._conditions = conditions

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        asked = args[0] if args and isinstance(args[0], Tensor) and args[0].is_meta else None
        if asked is not None:
            match func._schema.name:
                case "aten::_local_scalar_dense":
                    if asked.dtype == torch.bool:
                        return self._conditions
                    return 1.0 if asked.is_floating_point() else 1
                case "aten::is_nonzero":
                    return self._conditions
                case "aten::equal" | "aten::allclose":
                    return True
                case "aten::nonzero":
                    return _places(asked.numel(), asked.dim())
                case "aten::index" | "aten::index_put" | "aten::index_put_" | "aten::_index_put_impl_":
                    args = (asked, _without_masks(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def _places(count: int, *dimensions: int) -> Tensor:
    return torch.empty(count, *dimensions, dtype=torch.int64, device="meta")


def _without_masks(indices: Any) -> list[Tensor | None]:
    """Indices with each mask as the places of all its elements, one index for each of its dimensions."""
    found: list[Tensor | None] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype == torch.bool:
            found += [_places(index.numel())] * index.dim()
        else:
            found.append(index)
    return found
