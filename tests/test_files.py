"""Reading within a bound: the memory taken follows the file, not the bound."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from peftcli import files
from peftcli.errors import StorageError


def test_a_small_file_takes_little_memory_whatever_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"x" * 1000)
    tracemalloc.start()
    try:
        assert files.read_bounded(path, limit_bytes=1 << 30) == b"x" * 1000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_up_to_the_bound_all_is_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(size)))
    assert files.read_bounded(path, limit_bytes=100) == bytes(range(size))


def test_beyond_the_bound_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(101))
    with pytest.raises(StorageError, match="larger than 100 bytes"):
        files.read_bounded(path, limit_bytes=100)


@pytest.mark.parametrize(
    "quoted",
    [
        "I/O error: No space left on device (os error 28)",
        'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })',
    ],
)
def test_what_a_library_in_rust_quotes_of_the_system_is_an_error_of_the_storage(quoted: str, tmp_path: Path) -> None:
    """As safetensors says it today, and as its 0.5 does."""
    with pytest.raises(StorageError, match=r"(?i)space|full"), files.library_errors(tmp_path):
        raise RuntimeError(quoted)
    with pytest.raises(RuntimeError, match="code 28"), files.library_errors(tmp_path):
        raise RuntimeError("code 28: no error of the system")
