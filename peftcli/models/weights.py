"""How a weight is stored, hidden behind one view: methods read a base through it and never touch `.weight`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftcli.errors import AdapterError, MergeError
from peftcli.models.storage import Storage, storage_of


@dataclass(frozen=True)
class WeightView:
    """A linear map or an embedding as methods see it: always (out_features, in_features), whatever the storage."""

    module: nn.Module
    transposed: bool  # Conv1D stores (in, out)

    @property
    def storage(self) -> Storage:
        """How the weight lies in memory."""
        return storage_of(self.module)

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features); for an embedding (num_embeddings, embedding_dim)."""
        rows, columns = self.storage.shape(self.module)
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def device(self) -> torch.device:
        """Where the weight lies."""
        return self.storage.device(self.module)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the layer computes in; for a weight that is not packed, the weight's own."""
        return self.storage.compute_type(self.module)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weight as it lies in memory, scales included, the bias not."""
        return self.storage.stored_bytes(self.module)

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias; None where it has none."""
        bias = getattr(self.module, "bias", None)
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The detached weight (out_features, in_features) in `dtype`; may share storage with the base: do not edit."""
        # detached: who computes with it must not send gradients into the base
        weight = self.storage.dense(self.module)
        return (weight.T if self.transposed else weight).to(dtype)

    def stored(self, dense: Tensor) -> Tensor:
        """A dense (out_features, in_features) tensor in the layout that the module stores."""
        return dense.T.contiguous() if self.transposed else dense

    def replace(self, dense: Tensor) -> None:
        """Puts another (out_features, in_features) weight there, rounded once to the weight's own type.

        Raises `MergeError` where the weight is packed: the module is then untouched.
        """
        require_replaceable(self.module, type(self.module).__name__)
        value = self.stored(dense).to(device=self.device, dtype=self.dtype)
        self.module.register_parameter("weight", nn.Parameter(value.contiguous(), requires_grad=False))


def is_weight_of(tensor: Tensor, module: nn.Module) -> bool:
    """Whether a tensor is the very parameter that a module keeps as its weight."""
    return tensor is module._parameters.get("weight")


def require_replaceable(module: nn.Module, shown: str) -> None:
    """Raises `MergeError` where a weight is packed, so that no sum can be written there without rounding it again."""
    storage = storage_of(module)
    if storage.is_packed:
        raise MergeError(
            f"`{shown}` is not merged: {storage.refuse_replacing()}",
            fix="merge into dequantized weights: `peft merge --dtype bfloat16`, or adapters.dequantize(model) first",
        )


LINEAR_TYPES: tuple[type[nn.Module], ...] = (nn.Linear, Conv1D)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a plain linear map that methods can adapt."""
    return isinstance(module, LINEAR_TYPES)


def is_adaptable(module: nn.Module) -> bool:
    """Whether a module is a plain linear map or a table of embeddings."""
    return is_linear(module) or isinstance(module, nn.Embedding)


def weight_view(module: nn.Module) -> WeightView:
    """The view of a linear layer, an embedding or a convolution of width one (Conv1D as GPT-2 has it)."""
    return WeightView(module, transposed=isinstance(module, Conv1D))


def stored_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of a model's parameters once they are read in `dtype`: packed weights as they are packed, shared ones once."""
    seen: dict[int, int] = {}
    for module in model.modules():
        storage = storage_of(module)
        for name, parameter in module.named_parameters(recurse=False):
            packed = name == "weight" and storage.is_packed
            seen[id(parameter)] = storage.stored_bytes(module) if packed else parameter.numel() * dtype.itemsize
    return sum(seen.values())


class UnadaptedWeight(Tensor):
    """A parameter of an adapted layer as the layer's wrapper shows it to the model: to look at, not to compute with.

    A model that reads its type, device or shape reads the base's. A model that multiplies with it passes by the
    adapter, which would then have no effect here but in the merged model: that is an error, where it happens. torch
    leaves its fused encoder layers aside when it meets such a tensor, and calls the layers one by one.
    """

    original: Tensor
    path: str

    @staticmethod
    def of(parameter: Tensor, path: str) -> UnadaptedWeight:
        """The parameter, guarded; shares its memory."""
        shown = parameter.detach().as_subclass(UnadaptedWeight)
        shown.original, shown.path = parameter, path
        return shown

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if _only_looks(getattr(func, "__name__", ""), args):
            with torch._C.DisableTorchFunctionSubclass():
                seen = func(*args, **(kwargs or {}))
            # a property such as `.T` or `.data` gives the tensor itself again, which could be computed with
            if not (func.__name__ == "__get__" and isinstance(seen, Tensor)):
                return seen
        raise AdapterError(
            f"the model computes with the weight of `{_path_among(args, kwargs)}` itself and does not call the layer: "
            "the adapter there would have no effect",
            fix="leave this layer out of target_modules, or switch off the fused kernel that reads it",
        )


class WatchedWeight(UnadaptedWeight):
    """A parameter that may be computed with, and tells when it is."""

    computed_with: Callable[[], None]

    @staticmethod
    def telling(parameter: Tensor, path: str, computed_with: Callable[[], None]) -> WatchedWeight:
        """The parameter, watched, a part of the graph; shares its memory."""
        shown = parameter.as_subclass(WatchedWeight)
        shown.original, shown.path, shown.computed_with = parameter, path, computed_with
        return shown

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        try:
            return super().__torch_function__(func, types, args, kwargs)
        except AdapterError:
            for value in args:
                if isinstance(value, WatchedWeight):
                    value.computed_with()
            plain = [value.original if isinstance(value, WatchedWeight) else value for value in args]
            return func(*plain, **(kwargs or {}))


LOOKS = frozenset({
    "__get__", "__repr__", "__len__", "__hash__", "__format__", "size", "dim", "ndimension", "numel", "nelement", "stride",
    "storage_offset", "element_size", "data_ptr", "untyped_storage", "get_device", "is_contiguous", "is_floating_point",
    "is_complex", "is_inference", "is_shared", "new_empty", "new_zeros", "new_ones", "new_full", "new_tensor",
    "empty_like", "zeros_like", "ones_like", "full_like",
})  # fmt: skip
"""Functions that ask for facts about a tensor, or take it as the pattern for another one."""


def _only_looks(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a function asks for facts about the tensor, or takes it as the pattern for another one."""
    # `x.to(weight)`: the weight is the pattern, and not what is converted
    return name in LOOKS or (name in ("to", "type_as") and not isinstance(args[0], UnadaptedWeight))


def _path_among(*values: Any) -> str:
    """The path of the first guarded weight among nested arguments."""
    for value in values:
        if isinstance(value, UnadaptedWeight):
            return value.path
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        found = _path_among(*inner)
        if found:
            return found
    return ""


def same_parameter(first: Any, second: Any) -> bool:
    """Whether two attributes are one tensor, also where a wrapper shows it guarded."""
    first = first.original if isinstance(first, UnadaptedWeight) else first
    second = second.original if isinstance(second, UnadaptedWeight) else second
    return first is not None and first is second
