"""Counts the memory of tensors that a computation on the meta device would hold: what lives, and the most that ever did.

Nothing is computed and nothing is held; each storage is counted from the operation that makes it to the moment when its
last tensor is gone, autograd's saved ones included. So what a backward pass keeps is counted, not assumed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_OWN_COPIES = frozenset({"aten::logsumexp"})
"""Operations whose kernels make a copy of their input on the way, which no tensor shows."""
HEAP_LIMIT_BYTES = 32 << 20
"""Above it the C library gives a piece of memory back as soon as it is free; below it keeps it for the next one."""


@dataclass(frozen=True)
class Bytes:
    """The most at once: in all; of gradients and of what is as wide as the vocabulary at that moment; and of pieces that
    come from the C library's heap."""

    total: int = 0
    gradients: int = 0
    loss: int = 0
    heap: int = 0

    def plus(self, other: Bytes, times: int = 1) -> Bytes:
        """Each part plus `times` the other's."""
        return Bytes(*(one + times * two for one, two in zip(astuple(self), astuple(other), strict=True)))


class LiveMemory(TorchDispatchMode):
    """Inside, storages of the meta device are counted; those of `known` tensors are somebody else's."""

    def __init__(self, known: Iterable[Tensor], vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peaks = [Bytes()]
        """Of each phase."""
        self._vocabulary = vocabulary
        self._live = self._heap = self._gradients = self._loss = 0
        # what holds these storages must live as long as their addresses are known here
        self._known = list(known)
        self._counted: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in self._known}

    def next_phase(self) -> None:
        """From here on peaks are another phase's."""
        self.peaks.append(Bytes())
        self._note(0)

    def gradient_came(self, parameter: Tensor) -> None:
        """Called once the gradient of a parameter is whole and stays."""
        self._gradients += parameter.numel() * parameter.element_size()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                self._count(leaf)
        self._note(args[0].nbytes if func._schema.name in _OWN_COPIES else 0)
        return found

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._counted:
            is_loss = tensor.dim() > 1 and tensor.shape[-1] == self._vocabulary
            self._counted[key] = weakref.ref(storage, self._forget(key, size, is_loss))
            self._add(size, is_loss)

    def _forget(self, key: int, size: int, is_loss: bool) -> Callable[[Any], None]:
        def gone(_: Any) -> None:
            self._counted.pop(key, None)
            self._add(-size, is_loss)

        return gone

    def _add(self, size: int, is_loss: bool) -> None:
        self._live += size
        self._loss += size if is_loss else 0
        self._heap += size if abs(size) < HEAP_LIMIT_BYTES else 0

    def _note(self, extra: int) -> None:
        peak = self.peaks[-1]
        heap = max(peak.heap, self._heap)
        if self._live + extra > peak.total:
            self.peaks[-1] = Bytes(self._live + extra, self._gradients, self._loss + extra, heap)
        elif heap > peak.heap:
            self.peaks[-1] = replace(peak, heap=heap)


class GroupedProducts(TorchDispatchMode):
    """Inside, products of tokens with the weights of their experts run on the meta device in every floating type; there
    torch knows the shapes of those in bfloat16 only."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func._schema.name != "aten::_grouped_mm" or args[0].dtype == torch.bfloat16:
            return func(*args, **(kwargs or {}))
        shaped: Tensor = func(args[0].bfloat16(), args[1].bfloat16(), *args[2:], **(kwargs or {}))
        return torch.empty_like(shaped, dtype=args[0].dtype)
