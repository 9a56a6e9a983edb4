"""Running out of memory, told apart from other faults."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import torch

from peftcli.errors import MemoryLimitError

# torch's allocators raise plain RuntimeErrors on the host
_SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")

OUT_OF_MEMORY_TYPES: tuple[type[BaseException], ...] = (torch.OutOfMemoryError, MemoryError, RuntimeError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch or Python says that host or device memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def release_memory() -> None:
    """Gives cached blocks back, after the tensors of a failed step went out of scope."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def memory_limit(what: str, fix: str) -> Iterator[None]:
    """Turns running out of memory inside the block into a `MemoryLimitError` that says where and what to do."""
    try:
        yield
    except OUT_OF_MEMORY_TYPES as error:
        if is_out_of_memory(error):
            raise MemoryLimitError(f"out of memory {what}", fix=fix) from error
        raise
