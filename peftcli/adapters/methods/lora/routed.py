"""Fused experts' weights with their updates apart: what tokens are multiplied with is never W + s B A of every expert.

A model multiplies by such a weight in one of two ways: expert after expert (`F.linear(tokens, weight[e])`), or in one
grouped product over tokens sorted by expert. Either becomes the base's product and two narrow ones over the same tokens.
Any other use gets the sum, of the experts that it picked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_TURNS = (Tensor.transpose, torch.transpose, Tensor.swapaxes, torch.swapaxes)
_TURNED = (Tensor.mT.__get__, Tensor.T.__get__)  # type: ignore[attr-defined]
_PRODUCTS = (Tensor.matmul, torch.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm)
_LOOKS = frozenset({
    "size", "dim", "ndimension", "numel", "nelement", "stride", "data_ptr", "element_size", "get_device", "is_contiguous",
    "is_floating_point", "is_complex", "__len__", "storage_offset", "untyped_storage",
})  # fmt: skip


def _grouped_products() -> tuple[Any, ...]:
    """Every function by which a model may multiply sorted tokens by their experts: torch's, and transformers' stand-in
    where torch's cannot be used."""
    named = [getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None)]
    stand_in = getattr(torch.ops.transformers, "grouped_mm_fallback", None)
    return tuple(found for found in (*named, stand_in, getattr(stand_in, "default", None)) if found is not None)


class RoutedWeight(Tensor):
    """W (..., out, in) of one or all experts beside A (..., r, in), B (..., out, r); `turned`: shown as (..., in, out)."""

    plain: Tensor
    lora_a: Tensor
    lora_b: Tensor
    scaling: float
    turned: bool

    @staticmethod
    def of(plain: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, *, turned: bool) -> RoutedWeight:
        """The weight with its update; shares its memory."""
        shown = plain.detach().as_subclass(RoutedWeight)
        shown.plain, shown.lora_a, shown.lora_b = plain, lora_a, lora_b
        shown.scaling, shown.turned = scaling, turned
        return shown

    def dense(self) -> Tensor:
        """W + s B A, in the weight's type and as it is shown."""
        change = (self.lora_b @ self.lora_a) * self.scaling
        return (self.plain + (change.mT if self.turned else change)).to(self.plain.dtype)

    def _like(self, plain: Tensor, *, turned: bool) -> RoutedWeight:
        return RoutedWeight.of(plain, self.lora_a, self.lora_b, self.scaling, turned=turned)

    def _picked(self, index: Any) -> RoutedWeight:
        return RoutedWeight.of(
            self.plain[index], self.lora_a[index], self.lora_b[index], self.scaling, turned=self.turned
        )

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        found = _answer(func, args, kwargs)
        if found is not NotImplemented:
            return found
        return func(*_without_updates(args), **{name: _plain(value) for name, value in kwargs.items()})


def _answer(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a function gives where the update can be kept apart; NotImplemented where it cannot."""
    weight = args[0] if args and isinstance(args[0], RoutedWeight) else None
    if weight is not None:
        if func is Tensor.__getitem__ and weight.plain.dim() == 3 and _is_expert(args[1]):
            return weight._picked(args[1])
        if func in _TURNED or (func in _TURNS and _swaps_last(args[1:], weight.plain.dim())):
            return weight._like(weight.plain.mT, turned=not weight.turned)
        if _only_looks(func):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        return NotImplemented
    if len(args) < 2 or not isinstance(args[1], RoutedWeight):
        return _as_pattern(func, args, kwargs)
    other: RoutedWeight = args[1]
    if func is F.linear and not other.turned and other.plain.dim() == 2:
        return _linear(args[0], other, *args[2:], **kwargs)
    if func in _PRODUCTS and other.turned and other.plain.dim() == 2:
        return _summed(args[0] @ other.plain, _narrow(args[0], other), other)
    if func in _grouped_products() and other.turned and not other.plain.is_meta:
        return _grouped(func, args[0], other, *args[2:], **kwargs)
    return _as_pattern(func, args, kwargs)


def _is_expert(index: Any) -> bool:
    """Whether an index picks whole experts: one by its number, or several by a list of numbers."""
    return isinstance(index, int) or (isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32))


def _swaps_last(dims: tuple[Any, ...], rank: int) -> bool:
    return len(dims) == 2 and {dim % rank for dim in dims} == {rank - 2, rank - 1}


def _only_looks(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return func in (
            Tensor.dtype.__get__, Tensor.device.__get__, Tensor.shape.__get__, Tensor.requires_grad.__get__,  # type: ignore[attr-defined]
            Tensor.is_meta.__get__, Tensor.is_cuda.__get__, Tensor.ndim.__get__, Tensor.layout.__get__,  # type: ignore[attr-defined]
        )  # fmt: skip
    return name in _LOOKS


def _as_pattern(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Another tensor cast to the weight's type."""
    if getattr(func, "__name__", "") in ("to", "type_as") and args and not isinstance(args[0], RoutedWeight):
        return func(*(value.plain if isinstance(value, RoutedWeight) else value for value in args), **kwargs)
    return NotImplemented


def _without_updates(values: tuple[Any, ...]) -> list[Any]:
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    """The sum, where a function can take nothing else."""
    if isinstance(value, RoutedWeight):
        return value.dense()
    return type(value)(_plain(item) for item in value) if type(value) in (list, tuple) else value


# -- products ----------------------------------------------------------------------------------------------------


def _linear(x: Tensor, weight: RoutedWeight, bias: Tensor | None = None) -> Tensor:
    return _summed(F.linear(x, weight.plain, bias), _narrow(x, weight), weight)


def _narrow(x: Tensor, weight: RoutedWeight) -> Tensor:
    """B A x for one expert's tokens, in the update's type."""
    return F.linear(F.linear(x.to(weight.lora_a.dtype), weight.lora_a), weight.lora_b)


def _summed(base: Tensor, update: Tensor, weight: RoutedWeight) -> Tensor:
    # the sum is taken in the update's type and rounded once
    return (base + update * weight.scaling).to(base.dtype)


def _grouped(func: Any, x: Tensor, weight: RoutedWeight, offs: Tensor, **options: Any) -> Tensor:
    """The grouped product of tokens (S, in), sorted by expert up to `offs`, with (E, in, out)."""
    base: Tensor = func(x, weight.plain, offs=offs, **options)
    narrow = x.to(weight.lora_a.dtype)
    if x.device.type == "cpu" or weight.plain.dtype != torch.bfloat16:
        return _summed(base, _by_expert(narrow, weight, offs), weight)
    inner = _product(func, narrow, weight.lora_a.mT, offs)
    return _summed(base, _product(func, inner, weight.lora_b.mT, offs), weight)


_ALIGNED = 8
"""Elements of 16 bits that the grouped kernels want a row to be a multiple of."""


def _product(func: Any, x: Tensor, matrices: Tensor, offs: Tensor) -> Tensor:
    """x (S, m) by (E, m, n) on the device, in bfloat16 as the kernels have it; widths are padded to what they take."""
    rows, columns = (-matrices.shape[1] % _ALIGNED, -matrices.shape[2] % _ALIGNED)
    padded = F.pad(matrices, (0, columns, 0, rows)).to(torch.bfloat16).contiguous()
    found: Tensor = func(F.pad(x, (0, rows)).to(torch.bfloat16), padded, offs=offs)
    return found[:, : matrices.shape[2]].to(x.dtype)


def _by_expert(x: Tensor, weight: RoutedWeight, offs: Tensor) -> Tensor:
    """B A x for sorted tokens, (S, out); tokens beyond the last group get nothing."""
    ends = offs.tolist()
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    hit = [number for number, size in enumerate(sizes) if size]
    if not hit:
        return x.new_zeros(len(x), weight.lora_b.shape[-2])
    groups = torch.split(x[: ends[-1]], [sizes[number] for number in hit])
    inner = [group @ weight.lora_a[number].T for group, number in zip(groups, hit, strict=True)]
    outer = [part @ weight.lora_b[number].T for part, number in zip(inner, hit, strict=True)]
    rest = [x.new_zeros(len(x) - ends[-1], outer[0].shape[1])] if ends[-1] < len(x) else []
    return torch.cat([*outer, *rest])
