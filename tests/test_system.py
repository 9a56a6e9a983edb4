"""What is asked of the operating system, against files that were made to have the answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from peftcli import system

MIB = 1 << 20


def holes(path: Path, **settings: int) -> int:
    with path.open("rb") as stream:
        return system.hole_bytes(stream.fileno(), path.stat().st_size, **settings)


def made(path: Path, *written: tuple[int, int], size: int) -> Path:
    """A file in which the bytes from the first to the second number of each pair are written."""
    with path.open("wb") as stream:
        for start, end in written:
            stream.seek(start)
            stream.write(b"x" * (end - start))
    os.truncate(path, size)
    if path.stat().st_blocks * 512 >= size > 0:
        pytest.skip("this file system keeps no holes")
    return path


def test_bytes_that_were_never_written_are_counted(tmp_path: Path) -> None:
    assert holes(made(tmp_path / "all", size=8 * MIB)) == 8 * MIB
    assert holes(made(tmp_path / "after", (0, MIB), size=8 * MIB)) == 7 * MIB
    assert holes(made(tmp_path / "before", (6 * MIB, 8 * MIB), size=8 * MIB)) == 6 * MIB
    between = made(tmp_path / "between", (0, MIB), (2 * MIB, 3 * MIB), (5 * MIB, 6 * MIB), size=8 * MIB)
    assert holes(between) == 5 * MIB
    assert holes(between, most=1) == MIB


def test_whole_files_have_none(tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(b"x" * MIB)
    (tmp_path / "empty").write_bytes(b"")
    assert holes(tmp_path / "whole") == holes(tmp_path / "empty") == 0


def test_a_system_without_holes_says_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path / "all", size=8 * MIB)
    monkeypatch.delattr(os, "SEEK_HOLE")
    assert holes(path) == 0
