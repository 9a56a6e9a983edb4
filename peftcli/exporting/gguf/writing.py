"""Tensors into a GGUF file, one at a time: however large the model, memory holds one of its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TYPES = ("f32", "f16", "bf16", "q8_0")
"""What a matrix may be stored as. Vectors (norms, biases) stay float32, as llama.cpp's own scripts have it."""
_Q8_BLOCK = 32


@dataclass(frozen=True)
class Stored:
    """One tensor of the file; `read` gives its values when they are due."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def write_tensors(writer: Any, path: Path, tensors: Sequence[Stored], kind: str) -> None:
    """Writes the file at `path`; `writer` (a `gguf.GGUFWriter`) holds its keys already."""
    import gguf
    import numpy as np

    kinds = [_kind_of(tensor, kind, gguf.GGMLQuantizationType) for tensor in tensors]
    for tensor, type_ in zip(tensors, kinds, strict=True):
        block, size = gguf.GGML_QUANT_SIZES[type_]
        num_bytes = math.prod(tensor.shape) // block * size
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), num_bytes, raw_dtype=type_)
    writer.write_header_to_file(path=path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, type_ in zip(tensors, kinds, strict=True):
        value = tensor.read().detach().to(device="cpu", dtype=torch.float32).contiguous()
        writer.write_tensor_data(gguf.quants.quantize(value.numpy(), type_))
    writer.close()


def _kind_of(tensor: Stored, kind: str, types: Any) -> Any:
    if len(tensor.shape) < 2:
        return types.F32
    # q8_0 has one scale for each 32 numbers of a row
    fits = kind != "q8_0" or tensor.shape[-1] % _Q8_BLOCK == 0
    return types[kind.upper() if fits else "F16"]
