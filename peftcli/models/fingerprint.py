"""What a base model is, in a few bytes, so that an adapter is never put on another base unnoticed.

Hashes (SHA-256) over name, shape and every value of every parameter:

    structure   names and shapes only
    exact       the bits of each value in the type that it was loaded in
    coarse      each value rounded to bfloat16, so that a float32 and a bfloat16 copy of one model agree
    half        each value rounded to float16, the same for a float16 copy

Of a packed weight the shape is that of what it stands for, the exact bits are those of the packed numbers and their
scales, and the rounded values are what it dequantizes to: a dequantized copy is the same model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from peftcli.models.streamed import StreamedWeight

SCHEME = "2"
"""Of how the hashes are made: only those of one scheme are compared."""
_PIECE = 1 << 22
_FLOATS = ("float64", "float32", "bfloat16", "float16", "none")
_HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Fingerprint:
    """`structure` covers names and shapes only; equal structures with different weights are different models."""

    structure: str
    coarse: str
    half: str
    exact: str
    dtype: str
    """The type of most values; the storage of most packed ones where there are any."""
    scheme: str = SCHEME

    @property
    def is_packed(self) -> bool:
        """Whether most values are stored quantized."""
        return self.dtype not in _FLOATS

    def other_storage(self, other: Fingerprint) -> bool:
        """Whether one of two models of one structure is stored quantized and the other is not, with other values than
        it dequantizes to: whether both came from the same weights cannot be told from here."""
        equal = self.coarse == other.coarse or self.half == other.half
        return self.structure == other.structure and self.is_packed != other.is_packed and not equal

    def to_dict(self) -> dict[str, str]:
        """The parts by name, as JSON has them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Fingerprint:
        """Raises `KeyError` where a part is missing. An older record compares by its structure alone."""
        scheme = str(value.get("scheme", "1"))
        names = (
            ("structure", "exact", "dtype") if scheme != SCHEME else ("structure", "coarse", "half", "exact", "dtype")
        )
        found = {key: str(value[key]) for key in names}
        return cls(**({"coarse": "", "half": ""} | found), scheme=scheme)

    def difference(self, other: Fingerprint) -> str | None:
        """None when both can be the same model; else what differs, as a phrase.

        Of values in different types those count as equal that rounding to 16 bits makes equal, every one of them.
        """
        if self.structure != other.structure:
            return "names or shapes of the parameters differ"
        if self.scheme != other.scheme:
            return None
        if self.exact == other.exact:
            return None
        if self.dtype == other.dtype:
            return "the weights differ"
        if self.coarse == other.coarse or self.half == other.half:
            return None
        if self.is_packed != other.is_packed:
            return None
        if {self.dtype, other.dtype} == {"bfloat16", "float16"}:
            return "the weights differ, or cannot be told equal in bfloat16 and float16: load them in float32"
        return "the weights differ"


@dataclass(frozen=True)
class PackedValues:
    """A weight that is stored as other numbers than it stands for."""

    storage: str
    shape: tuple[int, ...]
    parts: tuple[Tensor, ...]
    dense: Callable[[], Tensor]


def fingerprint(parameters: Iterable[tuple[str, Tensor | PackedValues]]) -> Fingerprint:
    """Fingerprint of named parameters. Exact, and the same on every device and with any number of threads."""
    # by name: the order in which a model lists its parameters is no part of it
    ordered = sorted(parameters, key=lambda item: item[0])
    structure, coarse, half, exact = (hashlib.sha256() for _ in range(4))
    dtypes: dict[str, int] = {}
    storages: dict[str, int] = {}
    # hashing lets go of the interpreter: tensors are hashed side by side
    # what lies in files is read to be hashed: one after the other, so that no more of it is held
    in_files = any(isinstance(tensor, StreamedWeight) for _, tensor in ordered)
    with ThreadPoolExecutor(max_workers=1 if in_files else max(1, torch.get_num_threads())) as pool:
        for (name, tensor), hashes in zip(ordered, pool.map(_hashes, (tensor for _, tensor in ordered)), strict=True):
            head = json.dumps([name, list(tensor.shape)]).encode()
            counts, dtype = (
                (storages, tensor.storage)
                if isinstance(tensor, PackedValues)
                else (dtypes, str(tensor.dtype).removeprefix("torch."))
            )
            counts[dtype] = counts.get(dtype, 0) + math.prod(tensor.shape)
            structure.update(head)
            # the type is part of the exact bits: the same bytes in another type are other values
            exact.update(head + dtype.encode() + hashes[0])
            coarse.update(head + hashes[1])
            half.update(head + hashes[2])
    # a base of which any layer is packed is another model than one of which none is
    counts = storages or dtypes
    main_dtype = max(counts, key=lambda key: counts[key]) if counts else "none"
    return Fingerprint(structure.hexdigest(), coarse.hexdigest(), half.hexdigest(), exact.hexdigest(), main_dtype)


def _hashes(tensor: Tensor | PackedValues) -> tuple[bytes, bytes, bytes]:
    """Digests of a tensor's values as they are, in bfloat16 and in float16."""
    if isinstance(tensor, PackedValues):
        exact = hashlib.sha256(b"".join(_hashes(part.reshape(-1))[0] for part in tensor.parts))
        return exact.digest(), *_hashes(tensor.dense())[1:]
    # each type once, where the tensor has one of the two itself
    digests = {dtype: hashlib.sha256() for dtype in dict.fromkeys((tensor.dtype, *_HALVES))}
    for piece in _pieces(tensor):
        for dtype, digest in digests.items():
            digest.update(piece.to(dtype).view(torch.uint8).numpy().data)
    found = {dtype: digest.digest() for dtype, digest in digests.items()}
    return found[tensor.dtype], found[torch.bfloat16], found[torch.float16]


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The values in order, flat, on the CPU; a piece at a time, so that a large table is not held in three types."""
    if isinstance(tensor, StreamedWeight):
        yield from (rows.reshape(-1) for _, rows in tensor.pieces())
        return
    # in the order of the values, however they lie in memory
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), _PIECE):
        yield flat[start : start + _PIECE].cpu()
