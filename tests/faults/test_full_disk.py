"""A really full disk, where a small one may be mounted: exit 6 naming the file, nothing lost, exact after space is made."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from whole_run import LORA, Child, adapter_bytes, at_step, contents, in_a_fork, require_whole, write_recipe

from peftcli import files, folders

pytestmark = pytest.mark.usefixtures("warm")
BALLAST = "ballast"


def mounted(place: Path, size: str) -> Iterator[Path]:
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "small", "2m")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "small", "1m")


def fill(disk: Path, leave: int) -> Callable[[], None]:
    """Puts something else on the disk until `leave` bytes are free."""

    def until_full() -> None:
        with (disk / BALLAST).open("wb", buffering=0) as stream:
            with contextlib.suppress(OSError):
                while True:
                    stream.write(bytes(4096))
            assert shutil.disk_usage(disk).free < 4096
            stream.truncate(max(0, os.path.getsize(disk / BALLAST) - leave))

    return until_full


@pytest.mark.parametrize("look_before", [True, False], ids=["looks before", "writes on"])
@pytest.mark.parametrize("leave", [0, 4096, 16384, 49152])
def test_a_run(small_disk: Path, tmp_path: Path, leave: int, look_before: bool) -> None:
    """Once with the look at the free space that stands before each save, and once with none, as if it had raced."""
    recipe, whole, folder = write_recipe(tmp_path), tmp_path / "whole", small_disk / "run"
    assert in_a_fork(["train", str(recipe), "--output", str(whole), "--quiet"])[0] == 0

    def arm() -> None:
        at_step(2, fill(small_disk, leave))()
        if not look_before:
            files.free_bytes = lambda path: 1 << 40

    code, text = Child(["train", str(recipe), "--output", str(folder), "--quiet"], arm=arm).end()
    assert code == 6, text
    assert "Traceback" not in text
    assert ("disk full" in text) or ("bytes are needed" in text and look_before), text
    assert f"  at {folder}" in text
    assert "free some space" in text
    # how far it came depends on what was left; whatever is there is whole
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    assert checkpoints
    assert leave or checkpoints[-1].name == "step-00000001"
    for checkpoint in checkpoints:
        folders.verify_manifest(checkpoint)
    (small_disk / BALLAST).unlink()
    code, text = in_a_fork(["resume", str(folder), "--quiet"])
    assert code == 0, text
    require_whole(folder, whole, leave)


def test_a_run_that_is_still_full(small_disk: Path, tmp_path: Path) -> None:
    """Resuming before there is space changes nothing; afterwards it is exact all the same."""
    recipe, whole, folder = write_recipe(tmp_path), tmp_path / "whole", small_disk / "run"
    assert in_a_fork(["train", str(recipe), "--output", str(whole), "--quiet"])[0] == 0
    arguments = ["train", str(recipe), "--output", str(folder), "--quiet"]
    assert Child(arguments, arm=at_step(2, fill(small_disk, 0))).end()[0] == 6
    for _ in range(2):
        code, text = in_a_fork(["resume", str(folder), "--quiet"])
        assert code == 6, text
        assert f"  at {folder}" in text
    (small_disk / BALLAST).unlink()
    assert in_a_fork(["resume", str(folder), "--quiet"])[0] == 0
    require_whole(folder, whole, "still full")


@pytest.mark.parametrize("look_before", [True, False], ids=["looks before", "writes on"])
def test_a_merge(tiny_disk: Path, tmp_path: Path, look_before: bool) -> None:
    """The base alone is larger than this disk."""
    recipe, run = write_recipe(tmp_path, LORA), tmp_path / "run"
    assert in_a_fork(["train", str(recipe), "--output", str(run), "--quiet"])[0] == 0
    before = adapter_bytes(run)

    def arm() -> None:
        if not look_before:
            files.free_bytes = lambda path: 1 << 40

    code, text = Child(["merge", str(run), "--output", str(tiny_disk / "merged"), "--quiet"], arm=arm).end()
    assert code == 6, text
    assert f"  at {tiny_disk}" in text
    assert contents(tiny_disk) == {}, "nothing is left on it"
    assert adapter_bytes(run) == before
