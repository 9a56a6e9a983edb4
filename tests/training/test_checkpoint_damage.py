"""No damage to a checkpoint may go unseen: the older one is taken, and the damaged one is named with its reason."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftcli import files
from peftcli.errors import CheckpointError, StorageError
from peftcli.training.checkpoint import CheckpointStore
from peftcli.training.config import CheckpointConfig
from peftcli.training.loop import fit

MakeTiny = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("quick_disk")

FILES = ["adapter.safetensors", "optimizer.safetensors", "best.safetensors", "state.json", "manifest.json"]
NEWEST, OLDER = "step-00000008", "step-00000004"


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


def replace_by_a_link(path: Path) -> None:
    path.rename(path.parent.parent / "moved")
    path.symlink_to(path.parent.parent / "moved")


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


DAMAGE = [truncate, halve, os.unlink, fill_with_zeros, flip_one_bit, replace_by_a_link, replace_by_a_folder, append]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("original") / "checkpoints"


OPTIONS = {"steps": 8, "evaluate_every": 2, "learning_rate": 0.1}


@pytest.fixture
def folder(make_tiny: MakeTiny, original: Path, tmp_path: Path) -> Path:
    """Two good checkpoints of a run that ended after step 8; made once, copied for each test."""
    if not original.exists():
        fit(make_tiny(original, checkpoint=CheckpointConfig(every=4), **OPTIONS).setup)
    return Path(shutil.copytree(original, tmp_path / "checkpoints"))


def store(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder, "run", identity={"recipe": "abc"})


def test_the_original_is_good(folder: Path) -> None:
    snapshot, rejected = store(folder).newest()
    assert snapshot is not None
    assert (snapshot.state.step, rejected) == (8, [])
    assert {path.name for path in (folder / NEWEST).iterdir()} == set(FILES)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_seen_and_the_older_one_taken(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(folder / NEWEST / name)
    snapshot, rejected = store(folder).newest()
    assert snapshot is not None
    assert snapshot.state.step == 4
    assert [fault.where for fault in rejected] == [str(folder / NEWEST)]
    assert rejected[0].message.startswith(f"{NEWEST} cannot be used: ")


@pytest.mark.parametrize("flips", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_bit_flips(folder: Path, flips: int, record_property: Callable[[str, object], None]) -> None:
    draw = random.Random(flips)
    names = [FILES[number % len(FILES)] for number in range(flips)]
    places = [(name, draw.randrange((folder / NEWEST / name).stat().st_size * 8)) for name in names]
    for name, place in places:
        flip_one_bit(folder / NEWEST / name, place)
        snapshot, rejected = store(folder).newest()
        assert snapshot is not None
        assert (snapshot.state.step, len(rejected)) == (4, 1), (name, place)
        flip_one_bit(folder / NEWEST / name, place)
    assert store(folder).newest()[1] == []
    record_property("count", f"bit flips in a checkpoint: {flips}, none silent")


def test_the_result_after_a_fallback_is_the_same(make_tiny: MakeTiny, folder: Path, tmp_path: Path) -> None:
    whole = make_tiny(tmp_path / "whole", **OPTIONS)
    fit(whole.setup)
    flip_one_bit(folder / NEWEST / "optimizer.safetensors")
    resumed = make_tiny(folder, resume=True, **OPTIONS)
    result = fit(resumed.setup)
    assert result.resumed_from == 4
    assert NEWEST in result.warnings[0]
    assert resumed.weights() == whole.weights()
    assert store(folder).newest()[1] == []  # the damaged folder was replaced on the way


def test_a_file_that_does_not_belong(folder: Path) -> None:
    (folder / NEWEST / "extra.pkl").write_bytes(b"x")
    assert "extra.pkl does not belong here" in store(folder).newest()[1][0].message


def test_a_renamed_or_foreign_checkpoint(folder: Path) -> None:
    (folder / NEWEST).rename(folder / "step-00000009")
    snapshot, rejected = store(folder).newest()
    assert snapshot is not None
    assert snapshot.state.step == 4
    assert "its step is 8, not 9" in rejected[0].message
    with pytest.raises(CheckpointError) as caught:
        CheckpointStore(folder, "another run", identity={"recipe": "abc"}).newest()
    with pytest.raises(CheckpointError, match="recipe was 'abc' and is now 'abd'"):
        CheckpointStore(folder, "another run", identity={"recipe": "abd"}).newest()
    assert "its run_id is 'run', not 'another run'" in str(caught.value)


def test_a_consistent_but_wrong_state_is_refused(folder: Path) -> None:
    """Hashes made right again by hand: the content is still checked."""
    path = folder / NEWEST
    facts = json.loads((path / "state.json").read_text())
    facts["training"]["tokenz"] = facts["training"].pop("tokens")
    (path / "state.json").write_text(files.to_json(facts))
    manifest = json.loads((path / "manifest.json").read_text())
    data = (path / "state.json").read_bytes()
    manifest["files"]["state.json"] = {"bytes": len(data), "sha256": files.sha256_bytes(data)}
    (path / "manifest.json").write_text(files.to_json(manifest))
    assert "other fields: tokens, tokenz" in store(folder).newest()[1][0].message


def test_none_good_names_them_all(folder: Path) -> None:
    for name in (NEWEST, OLDER):
        truncate(folder / name / "adapter.safetensors")
    with pytest.raises(CheckpointError) as caught:
        store(folder).newest()
    assert NEWEST in str(caught.value)
    assert OLDER in str(caught.value)


def test_what_a_kill_left_behind_is_swept(folder: Path) -> None:
    left = folder / ".tmp-step-00000012-17-abcdef01"
    left.mkdir()
    foreign = folder / ".notes"
    foreign.mkdir()
    store(folder).clean()
    assert not left.exists()
    assert foreign.exists()


def test_a_full_disk_is_seen_before(make_tiny: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    with pytest.raises(StorageError, match=r"bytes are needed, 1,000 are free"):
        fit(make_tiny(tmp_path / "new").setup)
    assert not list(tmp_path.rglob("*.safetensors"))
