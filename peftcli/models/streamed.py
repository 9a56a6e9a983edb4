"""A parameter that lies in files until it is computed with: what a model of any size needs of memory is one tensor.

`StreamedWeight` stands in a module's place for a parameter. Its shape, type and device are looked at for nothing; what
computes with it gets its values, read from the files for that one operation. Products and lookups with large tables
read a piece of the rows at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.models.stored import StoredTensor
from peftcli.models.weights import LOOKS

PIECE = 1 << 20
"""Values that are read at once of a larger tensor."""


class NotStreamed(Exception):
    """Why a model cannot be used tensor by tensor, as a phrase: who asks for it holds it whole."""


Seen = Callable[[str, Tensor, int], Tensor]
"""(name, rows of a weight, number of the first) -> what the model computes with in their place, of the same shape."""


class Held(ABC):
    """Where the values of one tensor lie."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @abstractmethod
    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows of the tensor in a type, in memory of their own; of a number without rows: itself."""


@dataclass(frozen=True)
class InFile(Held):
    """A tensor that lies in one file as it is."""

    stored: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """As the header of its file says."""
        return self.stored.shape

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """The type that it is stored in."""
        assert self.stored.dtype is not None
        return self.stored.dtype

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        return self.stored.rows(start, stop, dtype)


@dataclass(frozen=True)
class Fused(Held):
    """All experts of a layer, (experts, rows, columns), of which each has its matrices in files of its own."""

    experts: Sequence[Sequence[StoredTensor]]
    """Expert -> its matrices, which stand below each other."""

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(experts, rows, columns)."""
        return len(self.experts), sum(part.shape[0] for part in self.experts[0]), self.experts[0][0].shape[1]

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """The type that its parts are stored in."""
        found = self.experts[0][0].dtype
        assert found is not None
        return found

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        stacked = torch.stack([torch.cat([part.read() for part in parts]) for parts in self.experts[start:stop]])
        return stacked.to(dtype)


class Stream:
    """How the weights of one streamed model are shown to who computes with them."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.seen: Seen | None = None


class StreamedWeight(Tensor):
    """A parameter whose values lie in files. Nothing can be written into it."""

    held: Held
    path: str
    stream: Stream

    @staticmethod
    def of(held: Held, name: str, stream: Stream) -> StreamedWeight:
        """The parameter in the type that the stream computes in; takes a few bytes of memory."""
        dtype = stream.dtype if held.dtype.is_floating_point else held.dtype
        # not a number, as seen by whoever passes by what is below
        empty = torch.full((), float("nan"), dtype=dtype) if dtype.is_floating_point else torch.zeros((), dtype=dtype)
        return _marked(empty.expand(held.shape), held, name, stream)

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Number of the first row, and rows: a bounded number at a time, as the model computes with them."""
        shape = self.held.shape
        count = shape[0] if shape else 1
        stop = count if stop is None else stop
        step = max(1, PIECE // max(1, torch.Size(shape[1:]).numel()))
        seen = self.stream.seen if self.dtype.is_floating_point else None
        while start < stop:
            end = min(stop, (start // step + 1) * step)
            if seen is None:
                found = self.held.rows(start, end, self.dtype)
            else:
                # of the whole piece, so that a row is the same however it is asked for
                first = start // step * step
                rows = self.held.rows(first, min(count, first + step), self.dtype)
                found = seen(self.path, rows, first)
                found = found[start - first : end - first] if shape else found
            yield start, found
            start = end

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Some or all rows as a plain tensor."""
        shape = self.held.shape
        if not shape:
            return next(self.pieces())[1]
        stop = shape[0] if stop is None else stop
        found = torch.empty((stop - start, *shape[1:]), dtype=self.dtype)
        for first, rows in self.pieces(start, stop):
            found[first - start : first - start + len(rows)] = rows
        return found

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _OWN and (found := _OWN[name](func, args, kwargs)) is not NotImplemented:
            return found
        if name in LOOKS or _is_pattern(name, args):
            with torch._C.DisableTorchFunctionSubclass():
                looked = func(*args, **kwargs)
            # `.T`, `.data`: values, which the stand-in does not have
            if not (name == "__get__" and isinstance(looked, Tensor)):
                return looked
        if name.endswith("_") and not name.endswith("__") and isinstance(args[0], StreamedWeight):
            raise NotStreamed(f"`{args[0].path}` would be changed in place")
        return func(*_read(args), **_read(kwargs))


def _marked(shown: Tensor, held: Held, name: str, stream: Stream) -> StreamedWeight:
    with torch._C.DisableTorchFunctionSubclass():
        found = shown.detach().as_subclass(StreamedWeight)
    found.held, found.path, found.stream = held, name, stream
    # what `nn.Parameter` asks an instance of a subclass
    found._is_param = True
    return found


def _is_pattern(name: str, args: tuple[Any, ...]) -> bool:
    """Whether another tensor is converted to the weight's type or device."""
    return name in ("to", "type_as") and not isinstance(args[0], StreamedWeight)


def _read(value: Any) -> Any:
    """Nested arguments with values in the place of what lies in files."""
    if isinstance(value, StreamedWeight):
        return value.read()
    if isinstance(value, Mapping):
        return {key: _read(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_read(inner) for inner in value)
    return value


# -- what is answered without reading all of it ---------------------------------------------------------------------


def _alias(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    one: StreamedWeight = args[0]
    return StreamedWeight.of(one.held, one.path, one.stream)


def _other_class(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    # a guard around the weight keeps the weight itself beside what it shows
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def _copied(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return nn.Parameter(args[0].read(), requires_grad=args[0].requires_grad)


def _set(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if isinstance(args[1], Tensor):
        # `param.data = ...` of who moves a tensor to where it is already
        if args[1].shape == args[0].shape and torch.equal(args[0].read(), args[1].to(args[0].dtype)):
            return None
        raise NotStreamed(f"`{args[0].path}` would be given other values")
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def _picked(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    weight, index = args[0], args[1]
    if isinstance(index, Tensor) and index.dim() == 0 and index.dtype == torch.int64:
        index = int(index)
    if type(index) is int and isinstance(weight, StreamedWeight) and weight.held.shape:
        index %= weight.held.shape[0]
        return weight.read(index, index + 1)[0]
    return NotImplemented


def _embedding(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if len(args) < 2 or not isinstance(args[1], StreamedWeight) or kwargs.get("max_norm") is not None:
        return NotImplemented
    ids, weight = args[0], args[1]
    found = torch.empty((*ids.shape, *weight.shape[1:]), dtype=weight.dtype)
    wanted = ids.unique()
    step = max(1, PIECE // max(1, weight.shape[1:].numel()))
    for piece in (wanted // step).unique().tolist():
        first = piece * step
        rows = weight.read(first, min(len(weight), first + step))
        inside = (ids >= first) & (ids < first + step)
        found[inside] = rows[ids[inside] - first]
    return found


def _linear(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if len(args) < 2 or not isinstance(args[1], StreamedWeight) or args[1].numel() <= PIECE:
        return NotImplemented
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    answer = torch.cat([F.linear(args[0], rows) for _, rows in args[1].pieces()], -1)
    return answer if bias is None else answer + _read(bias)


_OWN: Mapping[str, Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any]] = {
    "detach": _alias,
    "clone": _alias,
    "requires_grad_": lambda func, args, kwargs: args[0],
    "as_subclass": _other_class,
    "__deepcopy__": _copied,
    "__set__": _set,
    "__getitem__": _picked,
    "embedding": _embedding,
    "linear": _linear,
}
"""Name of a function -> its answer; `NotImplemented` for arguments that it is no use for."""
