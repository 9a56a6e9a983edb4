"""A safetensors file that may come from anywhere: its header is bounded and checked before a tensor is read."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from peftcli import files
from peftcli.errors import AdapterError
from peftcli.models.own_files import file_fault

MAX_TENSORS = 100_000
"""More than the adapters of 128 experts in each of 90 layers have."""
_HEADER_LIMIT_BYTES = 16 << 20
_VALUE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
}  # fmt: skip


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Key -> (dtype, shape) from a safetensors header, bounded, nothing else read. Raises `AdapterError`."""
    fault = file_fault(path, path.parent)
    if fault is not None:
        pickled = path.with_name("adapter_model.bin")
        if pickled.exists():
            raise AdapterError(
                "the adapter is pickled (adapter_model.bin), which can run code when read",
                where=str(pickled),
                fix="convert it where you trust it: safetensors.torch.save_file(torch.load(..., weights_only=True), ...)",
            )
        raise AdapterError(f"{path.name} {fault}", where=str(path), fix="get the adapter again")
    size = path.stat().st_size
    with files.reading_errors(path), files.open_regular(path) as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(_HEADER_LIMIT_BYTES, size - 8) or length < 2:
            raise AdapterError(f"{path.name} is damaged: its header does not fit", where=str(path), fix="get it again")
        raw = stream.read(length)
    if raw.count(b'"data_offsets"') > MAX_TENSORS:
        raise AdapterError(f"{path.name} names more than {MAX_TENSORS:,} tensors", where=str(path), fix="get it again")
    try:
        header = json.loads(raw, object_pairs_hook=_without_doubles)
        parts = {str(key): value for key, value in header.items() if key != "__metadata__"}
        _check_extent(parts.values(), size - 8 - length)
        return {key: (str(value["dtype"]), tuple(value["shape"])) for key, value in parts.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterError(
            f"{path.name} is damaged: its header is unreadable", where=str(path), fix="get it again"
        ) from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def _check_extent(parts: Iterable[Mapping[str, Any]], num_bytes: int) -> None:
    """The tensors fill the file exactly, so that neither a shape nor a file of holes can ask for more memory."""
    total = 0
    for part in parts:
        begin, end = part["data_offsets"]
        if not all(type(size) is int and size >= 0 for size in (begin, end, *part["shape"])):
            raise ValueError("a size is not a whole number")
        width = _VALUE_BYTES.get(part["dtype"])
        if width is not None and end - begin != math.prod(part["shape"]) * width:
            raise ValueError("a tensor does not fill its place")
        total += end - begin
    if total != num_bytes:
        raise ValueError("the tensors do not fill the file")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU. Raises `AdapterError` when it is damaged."""
    read_header(path)
    try:
        with files.reading_errors(path):
            data = path.read_bytes()
        tensors: dict[str, Tensor] = load_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise AdapterError(f"{path.name} is damaged: {error}"[:200], where=str(path), fix="get it again") from error
    return tensors
