"""What a base model is, in a few bytes, so that an adapter is never put on another base unnoticed.

Two hashes over name and shape of every parameter: `exact` also covers every bit of every weight in its stored type;
`coarse` covers 64 values a tensor rounded to bfloat16, so that a float32 and a bfloat16 copy of one model agree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

SAMPLES_PER_TENSOR = 64
_INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Fingerprint:
    """`structure` covers names and shapes only; equal structures with different weights are different models."""

    structure: str
    coarse: str
    exact: str
    dtype: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Fingerprint:
        return cls(**{key: str(value[key]) for key in ("structure", "coarse", "exact", "dtype")})

    def difference(self, other: Fingerprint) -> str | None:
        """None when both can be the same model; else what differs, as a phrase."""
        if self.structure != other.structure:
            return "names or shapes of the parameters differ"
        if self.dtype == other.dtype:
            return None if self.exact == other.exact else "the weights differ"
        if "float16" in (self.dtype, other.dtype):
            return None  # float16 rounds values that bfloat16 rounds elsewhere: not comparable
        return None if self.coarse == other.coarse else "the weights differ"


def fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> Fingerprint:
    """Fingerprint of named parameters. Exact and independent of thread count: only integer sums are taken."""
    structure, coarse, exact = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    dtypes: dict[str, int] = {}
    for name, tensor in sorted(parameters, key=lambda item: item[0]):
        head = json.dumps([name, list(tensor.shape)]).encode()
        structure.update(head)
        dtype = str(tensor.dtype).removeprefix("torch.")
        dtypes[dtype] = dtypes.get(dtype, 0) + tensor.numel()
        coarse.update(head + _sampled_bytes(tensor))
        exact.update(head + dtype.encode() + _bit_sums(tensor))
    main_dtype = max(dtypes, key=lambda key: dtypes[key]) if dtypes else "none"
    return Fingerprint(structure.hexdigest(), coarse.hexdigest(), exact.hexdigest(), main_dtype)


def _sampled_bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    if flat.numel() == 0:
        return b""
    step = max(1, flat.numel() // SAMPLES_PER_TENSOR)
    sample = flat[::step][:SAMPLES_PER_TENSOR].to("cpu", torch.bfloat16).contiguous()
    return sample.view(torch.int16).numpy().tobytes()


def _bit_sums(tensor: Tensor) -> bytes:
    """Two sums modulo 2**64 of the raw bits, one weighted by position, so that a swap of two values shows."""
    flat = tensor.detach().contiguous().reshape(-1)
    bits = flat.view(_INTEGER_OF_SIZE[flat.element_size()])
    total, weighted = 0, 0
    chunk = 1 << 22
    for start in range(0, bits.numel(), chunk):
        part = bits[start : start + chunk].to(torch.int64)
        positions = torch.arange(start, start + part.numel(), device=part.device, dtype=torch.int64)
        total += int(part.sum())
        weighted += int((part * (positions % 65521 + 1)).sum())
    return (total % 2**64).to_bytes(8, "little") + (weighted % 2**64).to_bytes(8, "little")
