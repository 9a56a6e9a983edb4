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
    ordered = sorted(parameters, key=lambda item: item[0])
    # everything is queued on the device first and fetched in one go: it is waited for once, not once a tensor
    samples = _on_host([_sample(tensor) for _, tensor in ordered])
    sums = _on_host([_bit_sums(tensor) for _, tensor in ordered])
    for (name, tensor), sample, both in zip(ordered, samples, sums, strict=True):
        head = json.dumps([name, list(tensor.shape)]).encode()
        structure.update(head)
        dtype = str(tensor.dtype).removeprefix("torch.")
        dtypes[dtype] = dtypes.get(dtype, 0) + tensor.numel()
        coarse.update(head + sample.view(torch.int16).numpy().tobytes())
        exact.update(head + dtype.encode() + both.numpy().astype("<i8").tobytes())
    main_dtype = max(dtypes, key=lambda key: dtypes[key]) if dtypes else "none"
    return Fingerprint(structure.hexdigest(), coarse.hexdigest(), exact.hexdigest(), main_dtype)


def _on_host(tensors: list[Tensor]) -> list[Tensor]:
    """Flat tensors of one type on the CPU, those of each device by a single copy."""
    found = list(tensors)
    for device in {tensor.device for tensor in tensors if tensor.device.type != "cpu"}:
        places = [place for place, tensor in enumerate(tensors) if tensor.device == device]
        joined = torch.cat([tensors[place] for place in places]).cpu()
        for place, part in zip(places, joined.split([tensors[place].numel() for place in places]), strict=True):
            found[place] = part
    return found


def _sample(tensor: Tensor) -> Tensor:
    """Evenly spaced values in bfloat16, on the tensor's device."""
    flat = tensor.detach().reshape(-1)
    step = max(1, flat.numel() // SAMPLES_PER_TENSOR)
    return flat[::step][:SAMPLES_PER_TENSOR].to(torch.bfloat16).contiguous()


def _bit_sums(tensor: Tensor) -> Tensor:
    """Two sums of the raw bits modulo 2**64, one weighted by position, so that a swap of two values shows.

    (2,) int64 on the tensor's device, where sums wrap around.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    bits = flat.view(_INTEGER_OF_SIZE[flat.element_size()])
    sums = torch.zeros(2, dtype=torch.int64, device=bits.device)
    chunk = 1 << 22
    for start in range(0, bits.numel(), chunk):
        part = bits[start : start + chunk].to(torch.int64)
        positions = torch.arange(start, start + part.numel(), device=part.device, dtype=torch.int64)
        sums += torch.stack([part.sum(), (part * (positions % 65521 + 1)).sum()])
    return sums
