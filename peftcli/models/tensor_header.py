"""The header of a safetensors file that may come from anywhere: bounded and checked before a tensor is read or hashed."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peftcli import files, system

MAX_TENSORS = 200_000
"""More than the largest mixtures of experts have in all their files."""
MAX_HOLE_BYTES = 1 << 30
"""A download that stopped, or a file that was blown up, is of holes for its most part: they read and are hashed as zeros."""
_HEADER_LIMIT_BYTES = 24 << 20
_OTHER_VALUES = 10_000
"""Objects and lists, or their marks in names and metadata, that a header may hold besides the three of each tensor."""
_VALUE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
}  # fmt: skip

Header = dict[str, tuple[str, tuple[int, ...]]]
"""Key -> (dtype, shape)."""


class DamagedHeader(ValueError):
    """Why a file cannot be a whole safetensors file, as a phrase after its name."""


def tensor_header(path: Path, *, limit_bytes: int = _HEADER_LIMIT_BYTES, max_tensors: int = MAX_TENSORS) -> Header:
    """The tensors of a file, by its header alone; they fill the file exactly. Raises `DamagedHeader`, or `StorageError`
    for a file that cannot be read."""
    size = path.stat().st_size
    with files.reading_errors(path), files.open_regular(path) as stream:
        # eight bytes, little-endian: how long the JSON after them is
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        # `{}` is the shortest header; a file shorter than eight bytes fails by its size here
        if length > min(limit_bytes, size - 8) or length < 2:
            raise DamagedHeader("is damaged: its header does not fit")
        raw = stream.read(length)
        holes = system.hole_bytes(stream.fileno(), size) if size > MAX_HOLE_BYTES else 0
    # counted in the bytes, before a parser builds anything of them
    tensors = raw.count(b'"data_offsets"')
    if tensors > max_tensors:
        raise DamagedHeader(f"names more than {max_tensors:,} tensors")
    if raw.count(b"{") + raw.count(b"[") > 3 * tensors + _OTHER_VALUES:
        # many empty lists take many times the memory of their text
        raise DamagedHeader("is damaged: its header holds other things than tensors")
    try:
        header = json.loads(raw, object_pairs_hook=_without_doubles)
        parts = {str(key): value for key, value in header.items() if key != "__metadata__"}
        extent = _extent(parts.values())
        found = {key: (str(value["dtype"]), tuple(value["shape"])) for key, value in parts.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedHeader("is damaged: its header is unreadable") from error
    # nothing left over: bytes that no tensor owns could hold anything, and be hashed as part of the base
    if extent != size - 8 - length:
        raise DamagedHeader(f"is damaged: it has {size - 8 - length:,} bytes for tensors of {extent:,}")
    if holes > max(MAX_HOLE_BYTES, size // 2):
        raise DamagedHeader(f"is damaged: {holes:,} of its {size:,} bytes were never written")
    return found


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    # the parsers of two libraries would each take another one of them
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def _extent(parts: Iterable[Mapping[str, Any]]) -> int:
    """Bytes that the tensors fill: those of the file, so that neither a shape nor a file of holes asks for more memory."""
    total = 0
    for part in parts:
        begin, end = part["data_offsets"]
        # by `type`, for true is an int to `isinstance`
        if not all(type(size) is int and size >= 0 for size in (begin, end, *part["shape"])):
            raise ValueError("a size is not a whole number")
        width = _VALUE_BYTES.get(part["dtype"])
        # widths of types that are not listed are left to the library, which refuses what it does not know
        if width is not None and end - begin != math.prod(part["shape"]) * width:
            raise ValueError("a tensor does not fill its place")
        total += end - begin
    return total
