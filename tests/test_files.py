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
