"""Running out of memory in training: what is given back, and how it is told."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import torch

from peftcli.errors import MemoryLimitError
from peftcli.models.device import OUT_OF_MEMORY_TYPES, is_out_of_memory


def release_memory() -> None:
    """Gives cached blocks back, after the tensors of a failed step went out of scope."""
    # tensors of a failed step hang in cycles (frames of its traceback) that only the collector frees
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def memory_limit(what: str, fix: str) -> Iterator[None]:
    """Turns running out of memory inside the block into a `MemoryLimitError` that says where and what to do."""
    try:
        yield
    except OUT_OF_MEMORY_TYPES as error:
        # the types are wide (RuntimeError): the message decides
        if is_out_of_memory(error):
            raise MemoryLimitError(f"out of memory {what}", fix=fix) from error
        raise
