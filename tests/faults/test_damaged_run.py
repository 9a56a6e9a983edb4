"""An interrupted run some of whose files were damaged: `peft resume` ends in the same bytes, or says why not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import pytest
from whole_run import Child, adapter_bytes, at_step, commit_seed, in_a_fork, losses, send, write_recipe

pytestmark = pytest.mark.usefixtures("warm")
OLDER, NEWEST = "checkpoints/step-00000001", "checkpoints/step-00000002"
OF_A_CHECKPOINT = ("adapter.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
FILES = [
    *(f"{NEWEST}/{name}" for name in OF_A_CHECKPOINT),
    f"{OLDER}/adapter.safetensors",
    f"{OLDER}/manifest.json",
    "recipe.yaml",
    "recipe.lock",
    "metrics.jsonl",
    "run.json",
]
"""Ten."""
Record = Callable[[str, object], None]


def truncate(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip_one_bit(path: Path, place: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    place = len(data) * 4 if place is None else place
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


SELDOM = [pytest.param(damage, marks=pytest.mark.slow) for damage in (halve, truncate, os.unlink, fill_with_zeros)]
KINDS = [flip_one_bit, *SELDOM]


class Interrupted:
    """A run that was stopped after its second step of three, with two checkpoints, and what it would have become."""

    def __init__(self, folder: Path) -> None:
        recipe = write_recipe(folder)
        recipe.write_text(recipe.read_text(encoding="utf-8").replace("keep: 1", "keep: 2"), encoding="utf-8")
        self.whole, self.folder = folder / "whole", folder / "run"
        assert in_a_fork(["train", str(recipe), "--output", str(self.whole), "--quiet"])[0] == 0
        arguments = ["train", str(recipe), "--output", str(self.folder), "--quiet"]
        assert Child(arguments, arm=at_step(2, send(signal.SIGTERM))).end()[0] == 143
        assert {path.name for path in (self.folder / NEWEST).iterdir()} == set(OF_A_CHECKPOINT)


@pytest.fixture(scope="module")
def interrupted(warm: None, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    return Interrupted(tmp_path_factory.mktemp("interrupted"))


def resume_damaged(interrupted: Interrupted, folder: Path, name: str, damage: Callable[[Path], object]) -> int:
    """Damages one file of a copy, resumes it, and asks that nothing wrong comes of it in silence."""
    shutil.copytree(interrupted.folder, folder)
    damage(folder / name)
    code, text = in_a_fork(["resume", str(folder), "--quiet"])
    what = (name, code, text)
    assert "Traceback" not in text, what
    assert code in (0, 2, 7), what
    if code == 0:
        assert adapter_bytes(folder) == adapter_bytes(interrupted.whole), what
        if name != "metrics.jsonl":
            assert losses(folder) == losses(interrupted.whole), what
        if name.startswith(NEWEST):
            told = json.loads((folder / "run.json").read_text(encoding="utf-8"))["warnings"]
            assert any("step-00000002 cannot be used" in warning for warning in told), told
    else:
        # a value of another kind is told with what was wanted in its place
        assert "  fix: " in text or "; wanted " in text, what
        assert not name.startswith(NEWEST), what
    shutil.rmtree(folder)
    return code


@pytest.mark.parametrize("damage", KINDS, ids=attrgetter("__name__"))
def test_every_file(
    interrupted: Interrupted, tmp_path: Path, damage: Callable[[Path], object], record_property: Record
) -> None:
    codes = [resume_damaged(interrupted, tmp_path / "run", name, damage) for name in FILES]
    record_property(
        "count",
        f"damaged runs, {damage.__name__}: {len(FILES)} files, {codes.count(0)} resumed to the same bytes, "
        f"{len(codes) - codes.count(0)} refused",
    )


@pytest.mark.parametrize("flips", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_random_bit_flips(interrupted: Interrupted, tmp_path: Path, flips: int, record_property: Record) -> None:
    draw: random.Random = commit_seed(f"{flips} flips")
    names = [name for name in FILES if name.startswith("checkpoints")]
    for _ in range(flips):
        name = draw.choice(names)
        place = draw.randrange((interrupted.folder / name).stat().st_size * 8)
        code = resume_damaged(interrupted, tmp_path / "run", name, lambda path, at=place: flip_one_bit(path, at))  # type: ignore[misc]
        assert code == 0, (name, place)
    record_property("count", f"bit flips in checkpoints of a run: {flips}, none silent, all resumed to the same bytes")
