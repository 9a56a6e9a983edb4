"""A safetensors file that may come from anywhere: its header is bounded and checked before a tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from peftcli import files
from peftcli.errors import AdapterError, NumericalError
from peftcli.models.own_files import file_fault
from peftcli.models.tensor_header import DamagedHeader, Header, tensor_header

MAX_TENSORS = 100_000
"""More than the adapters of 128 experts in each of 90 layers have."""
_HEADER_LIMIT_BYTES = 16 << 20


def read_header(path: Path) -> Header:
    """Key -> (dtype, shape) from a safetensors header, bounded, nothing else read. Raises `AdapterError`."""
    fault = file_fault(path, path.parent)
    if fault is not None:
        # the commonest reason for a missing safetensors file is an older one beside it, which is never unpickled
        pickled = path.with_name("adapter_model.bin")
        if pickled.exists():
            raise AdapterError(
                "the adapter is pickled (adapter_model.bin), which can run code when read",
                where=str(pickled),
                fix="convert it where you trust it: safetensors.torch.save_file(torch.load(..., weights_only=True), ...)",
            )
        raise AdapterError(f"{path.name} {fault}", where=str(path), fix="get the adapter again")
    try:
        return tensor_header(path, limit_bytes=_HEADER_LIMIT_BYTES, max_tensors=MAX_TENSORS)
    except DamagedHeader as error:
        raise AdapterError(f"{path.name} {error}", where=str(path), fix="get it again") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU. Raises `AdapterError` when it is damaged."""
    read_header(path)
    try:
        # read into memory rather than mapped: a file that is replaced meanwhile would change the tensors
        with files.reading_errors(path):
            data = path.read_bytes()
        tensors: dict[str, Tensor] = load_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        # the library's message can quote the header at length
        raise AdapterError(f"{path.name} is damaged: {error}"[:200], where=str(path), fix="get it again") from error
    return tensors


METADATA = {"format": "pt"}
"""Of every file of tensors, as other libraries write and want it."""


def serialise(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """safetensors bytes; the library orders the keys, so that equal tensors give equal bytes."""
    # cloned: safetensors refuses tensors that share memory, as tied ones do
    plain = {key: value.detach().to("cpu").contiguous().clone() for key, value in tensors.items()}
    data: bytes = save_safetensors(plain, metadata)
    return data


def require_finite(tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Raises `NumericalError` that names tensors with infinities or NaN; `where`: their file."""
    broken = [key for key, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise NumericalError(
            f"{len(broken)} of {len(tensors)} tensors are not finite: {', '.join(broken[:3])}",
            where=where,
            fix="the run diverged: take an earlier checkpoint, or train at a lower learning rate",
        )
