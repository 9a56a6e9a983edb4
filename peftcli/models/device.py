"""What is particular about a device: settings before it starts, what it can compute, moves from the host, lack of memory.

Each decision is a small function of the device's name, so that what is done on CUDA can be read, and tested, without it.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from peftcli import system

CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
"""The environment variable without which cuBLAS is not deterministic; read when CUDA starts."""
CUBLAS_WORKSPACE = ":4096:8"
"""Its value: eight buffers of 4096 KiB, one of the two that NVIDIA documents as deterministic."""
OUT_OF_MEMORY_TYPES: tuple[type[BaseException], ...] = (torch.OutOfMemoryError, MemoryError, RuntimeError)
"""Types of errors that may mean too little memory; `is_out_of_memory` decides which do."""
# torch's allocator on the host raises plain RuntimeErrors; so do CUDA's libraries that find no room for their workspaces
_OUT_OF_MEMORY_SIGNS = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "_status_alloc_failed",
    "\nmemoryerror",
)


def kind_of(device: torch.device | str) -> str:
    """cpu, cuda or mps: the device's name without its number."""
    return torch.device(device).type


def before_start(device: torch.device | str) -> None:
    """Settings that the device's libraries read once, when they are first used; call it before anything is computed.

    cuBLAS sums in an order of its own in each run unless its workspace is fixed. A value that the user has set stays.
    """
    if kind_of(device) == "cuda":
        os.environ.setdefault(CUBLAS_VARIABLE, CUBLAS_WORKSPACE)


def has_bf16(device: torch.device | str) -> bool:
    """Whether the device computes in bfloat16 itself; torch also counts a GPU that merely emulates it, many times slower."""
    return kind_of(device) != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def loading_options(device: torch.device | str) -> dict[str, object]:
    """Arguments for transformers so that each weight goes to the device as it is read.

    Without it the whole model is built in host memory and moved then. None on the CPU.
    """
    return {"device_map": {"": str(device)}} if kind_of(device) == "cuda" else {}


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on the device. From the host to CUDA by way of pinned memory: from any other the copy waits until the
    device has done all its work, once a tensor."""
    if tensor.device == torch.device(device):
        return tensor
    # pinning costs a copy on the host, which is still less than waiting for the device once a tensor
    if is_staged(tensor.device, device):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def is_staged(source: torch.device | str, target: torch.device | str) -> bool:
    """Whether a copy goes through pinned memory, so that the host need not wait for it."""
    return kind_of(source) == "cpu" and kind_of(target) == "cuda"


def start_peak_memory(device: torch.device | str) -> None:
    """Starts the device's peak over, so that a run in a process that has computed before reports its own."""
    if kind_of(device) == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes(device: torch.device | str) -> int:
    """Peak so far: of the device on CUDA, else of the process."""
    return torch.cuda.max_memory_allocated() if kind_of(device) == "cuda" else system.peak_memory_bytes()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch or Python says that host or device memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # RuntimeError is the type of nearly every error of torch: its text must say it
    return isinstance(error, RuntimeError) and says_out_of_memory(str(error))


def says_out_of_memory(text: str) -> bool:
    """Whether the text of an error, or a traceback, is of memory that ran out."""
    return any(sign in text.lower() for sign in _OUT_OF_MEMORY_SIGNS)
