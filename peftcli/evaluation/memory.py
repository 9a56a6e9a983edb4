"""Out of memory while scoring or writing, told in the user's terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from peftcli.errors import MemoryLimitError


@contextmanager
def memory_errors(doing: str, fix: str) -> Iterator[None]:
    """Translates running out of device or host memory into a `MemoryLimitError`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MemoryLimitError(f"out of memory while {doing}", fix=fix) from error
    except RuntimeError as error:
        # torch's allocator on the host has no exception class of its own
        if "allocate memory" not in str(error):
            raise
        raise MemoryLimitError(f"out of memory while {doing}", fix=fix) from error
