"""The tensors in the weight files of a base: names, types and values as they are stored, apart from any model class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from peftcli.errors import ModelError
from peftcli.models.snapshot import snapshot
from peftcli.models.source import BaseSource

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
TYPE_NAMES = {dtype: name for name, dtype in _TYPES.items()}
"""torch's type -> its name in a safetensors file."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file. `dtype` is None for a type that we have no name for."""

    name: str
    file: Path
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    type_name: str = ""
    """The type as the file names it."""

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers of a type that has a name."""
        return self.dtype is not None and self.dtype.is_floating_point

    def read(self) -> Tensor:
        """Its values, read from the file."""
        with safe_open(self.file, "pt") as opened:
            tensor: Tensor = opened.get_tensor(self.name)
        return tensor

    def rows(self, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """Some of its rows, in memory of their own and in `dtype` where one is given; a number without rows whole."""
        with safe_open(self.file, "pt") as opened:
            # copied: what was read is a part of the mapped file, which is to be let go of
            found: Tensor = opened.get_slice(self.name)[start:stop] if self.shape else opened.get_tensor(self.name)
            return found.to(dtype or found.dtype, copy=True)


def tensors_of_base(source: BaseSource) -> dict[str, StoredTensor]:
    """Name -> tensor of every weight file that is read when the base is loaded."""
    return tensors_in(path for name, path in snapshot(source).files.items() if name.endswith(".safetensors"))


def tensors_in(paths: Iterable[Path]) -> dict[str, StoredTensor]:
    """Name -> tensor, from the headers alone."""
    found: dict[str, StoredTensor] = {}
    for path in paths:
        with safe_open(path, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (no mapping)
                part = opened.get_slice(name)
                kind = part.get_dtype()
                found[name] = StoredTensor(name, path, _TYPES.get(kind), tuple(part.get_shape()), kind)
    return found


def original_weight(source: BaseSource, path: str, transposed: bool) -> Tensor:
    """The weight of the layer at `path` of a loaded model as the base's files have it, (out, in) float32.

    `transposed`: the file holds it as (in, out). Raises `ModelError` where the files know it by no name like it.
    """
    tensors = tensors_of_base(source)
    name = f"{path}.weight"
    found = next((tensors[end] for end in (name, *_ends(name)) if end in tensors), None)
    longer = [tensor for other, tensor in tensors.items() if other.endswith(f".{name}")]
    if found is None and len(longer) == 1:
        found = longer[0]
    if found is None or not found.is_float:
        raise ModelError(
            f"the files of {source.name} hold no weight before quantization for `{path}`",
            fix="choose a start that does not need the unquantized weights",
        )
    weight = found.read().float()
    return weight.T if transposed else weight


def main_type(tensors: Mapping[str, StoredTensor]) -> torch.dtype:
    """The floating type that most values have; float32 where there is none."""
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        if tensor.dtype is not None and tensor.is_float:
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + torch.Size(tensor.shape).numel()
    return max(counts, key=lambda dtype: counts[dtype], default=torch.float32)


class StoredTypes:
    """The type that each tensor of a loaded model has in the files of its base.

    A model may know a tensor under another name than the file (a prefix more or less, experts fused into one): the
    longest common end of the names decides, then the types of what no name has been found for.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor], live: Iterable[str]) -> None:
        self._types = {name: found.dtype for name, found in tensors.items() if found.dtype is not None}
        self._main = main_type(tensors)
        live = set(live)
        floats = {tensor.dtype for tensor in tensors.values() if tensor.dtype is not None and tensor.is_float}
        ends: dict[str, list[str]] = {}
        for name in self._types:
            for end in _ends(name):
                ends.setdefault(end, []).append(name)
        # one type: every tensor has it, and the ends of a hundred thousand names need not be kept
        self._ends = ends if len(floats) > 1 else {}
        # what no live name claims was renamed or fused on the way: its types are the best guess for the rest
        rest = {name: dtype for name, dtype in self._types.items() if name not in live and dtype.is_floating_point}
        counts: dict[torch.dtype, int] = {}
        for name, dtype in rest.items():
            counts[dtype] = counts.get(dtype, 0) + torch.Size(tensors[name].shape).numel()
        self._rest = max(counts, key=lambda dtype: counts[dtype], default=self._main)

    def of(self, name: str) -> torch.dtype:
        """The floating type of a tensor that the model calls `name`."""
        if name in self._types:
            return self._types[name]
        for end in _ends(name):
            found = {self._types[other] for other in self._ends.get(end, ())}
            # an end that names of different types share decides nothing
            if len(found) == 1:
                return found.pop()
        return self._rest


def _ends(name: str) -> list[str]:
    """Ends of a dotted name that still say which layer it is in, the longest first: two parts at least."""
    parts = name.split(".")
    # at least two parts: `weight` alone ends every name
    return [".".join(parts[start:]) for start in range(1, max(1, len(parts) - 1))]
