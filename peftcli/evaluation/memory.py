"""Out of memory while scoring or writing, told in the user's terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peftcli.errors import MemoryLimitError
from peftcli.models.device import OUT_OF_MEMORY_TYPES, is_out_of_memory


@contextmanager
def memory_errors(doing: str, fix: str) -> Iterator[None]:
    """Translates running out of device or host memory into a `MemoryLimitError`."""
    try:
        yield
    except OUT_OF_MEMORY_TYPES as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryLimitError(f"out of memory while {doing}", fix=fix) from error
