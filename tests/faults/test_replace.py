"""`--replace`: the older run stays as it was until the new one has begun well, and nothing of anybody's own is touched."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_disk import BROKEN_ONCE, FULL, KILL_BEFORE, KILL_HALFWAY, FaultyDisk
from whole_run import LORA, Child, adapter_bytes, contents, draw, expected_codes, in_a_fork, require_whole, write_recipe

from peftcli import files
from peftcli.cli.entry import run as peft
from peftcli.errors import CheckpointError, StorageError
from peftcli.recipe import load_recipe
from peftcli.runs.folder import existing_run
from peftcli.runs.folder_lock import LOCK_NAMES
from peftcli.runs.own_files import remove_run, strangers
from peftcli.runs.place import RunPlace, run_place

pytestmark = pytest.mark.usefixtures("warm")
KINDS = {KILL_BEFORE: 3, KILL_HALFWAY: 2, FULL: 1, BROKEN_ONCE: 1}
SELDOM = (KILL_BEFORE, FULL, BROKEN_ONCE)


class Old:
    """A finished run, and what a run of the other recipe is when nothing is in its way."""

    def __init__(self, folder: Path) -> None:
        self.run, self.new = folder / "old", folder / "new"
        self.recipe = write_recipe(folder)
        (folder / "before").mkdir()
        before = write_recipe(folder / "before", LORA)
        for recipe, run in ((before, self.run), (self.recipe, self.new)):
            assert in_a_fork(["train", str(recipe), "--output", str(run), "--quiet"])[0] == 0

    def copy(self, folder: Path) -> Path:
        shutil.copytree(self.run, folder / "run")
        return folder / "run"

    def command(self, run: Path, *more: str) -> list[str]:
        return ["train", str(self.recipe), "--output", str(run), "--replace", "--quiet", *more]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Old:
    return Old(tmp_path_factory.mktemp("replace"))


def test_the_new_run_is_as_in_a_fresh_folder(old: Old, tmp_path: Path) -> None:
    run = old.copy(tmp_path)
    assert in_a_fork(old.command(run))[0] == 0
    require_whole(run, old.new, "replaced")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    events = [json.loads(line)["event"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert events == [json.loads(line)["event"] for line in (old.new / "metrics.jsonl").read_text().splitlines()]
    assert in_a_fork(["resume", str(run), "--quiet"])[0] == 0


MISTAKES = {
    "a file that is not there": ("data.train=rows.jsonl", 3),
    "a base that is not there": ("model=./nothing", 4),
    "targets that match nothing": ("method={type: lora, target_modules: [nope]}", 4),
    "a length that no row has": ("data.max_length=9", 3),
    "a device that is not there": ("device=cuda:7", 5),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_nothing(old: Old, tmp_path: Path, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, (setting, code) = old.copy(tmp_path), MISTAKES[mistake]
    before = contents(run)
    found, text = in_a_fork(old.command(run, "--set", setting))
    assert found in (code, 2), text
    assert contents(run) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    monkeypatch.chdir(tmp_path)
    assert in_a_fork(["train", str(old.recipe), "--quiet", "--set", setting])[0] == found
    assert not (tmp_path / "runs").exists() or mistake.startswith("targets"), "no folder for what never began"


@pytest.mark.parametrize("kind", [KILL_HALFWAY, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SELDOM)])
def test_whatever_fails_a_whole_run_is_there(old: Old, tmp_path: Path, kind: str) -> None:
    counted = FaultyDisk()
    run = old.copy(tmp_path)
    before = contents(run)
    keep, files.disk = files.disk, counted
    try:
        assert peft(old.command(run)) == 0
    finally:
        files.disk = keep
    shutil.rmtree(run)
    exchange = counted.calls.index("exchange")
    points = [*draw(counted.points(kind), KINDS[kind], f"replace {kind}"), *(range(exchange, exchange + 2))]
    for point in (point for point in points if point in counted.points(kind)):
        run = old.copy(tmp_path)
        code, text = Child(old.command(run), FaultyDisk(kind, point)).end()
        what = (kind, point, counted.calls[point], text)
        assert code in expected_codes(kind) | {0}, what
        if contents(run) != before:
            assert point >= exchange - 1, what
            if code != 0:
                assert in_a_fork(["resume", str(run), "--quiet"])[0] == 0, what
            assert adapter_bytes(run) == adapter_bytes(old.new), what
        assert in_a_fork(old.command(run))[0] == 0, what
        require_whole(run, old.new, what)
        assert [path.name for path in tmp_path.iterdir()] == ["run"], what
        shutil.rmtree(run)


@pytest.mark.parametrize("seeds", [False, True])
def test_a_removal_goes_on_where_it_was_stopped(old: Old, tmp_path: Path, seeds: bool) -> None:
    def given_up() -> Path:
        run = old.copy(tmp_path)
        (run / "tracking" / "wandb").mkdir(parents=True)
        (run / "tracking" / "wandb" / "notes").write_text("by a tracker")
        (run / LOCK_NAMES[0]).touch()
        for name in ("seed-42", "seed-43") if seeds else ():
            shutil.copytree(old.run, run / name)
            (run / name / LOCK_NAMES[0]).touch()
        return run

    keep, point, stopped = files.disk, 0, True
    while stopped:
        run = given_up()
        files.disk = disk = FaultyDisk(BROKEN_ONCE, point)
        try:
            with contextlib.suppress(StorageError):
                remove_run(run)
        finally:
            files.disk = keep
        stopped, point = len(disk.calls) == point + 1, point + 1
        assert not strangers(run), (point, disk.calls[-1])
        assert remove_run(run) == []
        assert [path.name for path in run.iterdir()] == [LOCK_NAMES[0]], (point, disk.calls[-1])
        shutil.rmtree(run)
    assert point > 10 * (1 + 2 * seeds)


def test_a_file_system_without_exchange(old: Old, tmp_path: Path) -> None:
    class Plain(FaultyDisk):
        def exchange(self, one: Path, other: Path) -> bool:
            return False

    run = old.copy(tmp_path)
    code, text = Child(old.command(run), Plain()).end()
    assert code == 0
    assert f"is kept at {tmp_path / '.run.old'}" in text
    require_whole(run, old.new, "renamed")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_seeds_move_as_a_whole(old: Old, tmp_path: Path) -> None:
    run = old.copy(tmp_path)
    before = contents(run)
    code, text = in_a_fork(old.command(run, "--set", "seeds=2", "--set", "method={type: lora, target_modules: [nope]}"))
    assert code != 0, text
    assert contents(run) == before
    assert in_a_fork(old.command(run, "--set", "seeds=2", "--set", "training.max_steps=1"))[0] == 0
    assert {path.name for path in run.iterdir() if path.is_dir()} == {"seed-42", "seed-43"}
    assert not strangers(run)
    assert in_a_fork(old.command(run))[0] == 0
    require_whole(run, old.new, "one seed after two")


# -- what is never touched ---------------------------------------------------------------------------------------


def _project(place: Path, old: Old) -> list[str]:
    shutil.copy(old.recipe, place / "recipe.yaml")
    return ["train", str(place / "recipe.yaml"), "--output", str(place)]


def _run_with_notes(place: Path, old: Old) -> list[str]:
    shutil.copytree(old.run, place, dirs_exist_ok=True)
    (place / "adapter" / "notes.txt").write_text("mine")
    return old.command(place)


def _record_and_seed(place: Path, old: Old) -> list[str]:
    shutil.copy(old.run / "run.json", place)
    shutil.copytree(old.run, place / "seed-42")
    return ["train", str(old.recipe), "--output", str(place)]


def _own_record(place: Path, old: Old) -> list[str]:
    for name in ("run.json", "report.md"):
        (place / name).write_text('{"status": "mine"}')
    return ["train", str(old.recipe), "--output", str(place)]


def _record_and_file(place: Path, old: Old) -> list[str]:
    shutil.copy(old.run / "run.json", place)
    (place / "checkpoints.md").write_text("mine")
    return ["train", str(old.recipe), "--output", str(place)]


def _data_inside(place: Path, old: Old) -> list[str]:
    shutil.copytree(old.run, place, dirs_exist_ok=True)
    return old.command(place, "--set", f"model={place / 'adapter'}")


def _own_recipe(place: Path, old: Old) -> list[str]:
    return ["resume", *_project(place, old)[-1:]]


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize(
    "make",
    [_project, _run_with_notes, _record_and_seed, _own_record, _record_and_file, _data_inside, _own_recipe],
    ids=lambda make: make.__name__.strip("_"),
)
def test_what_is_somebodys_own_stays(
    old: Old, tmp_path: Path, make: Callable[[Path, Old], list[str]], replace: bool
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    command = [*(word for word in make(place, old) if word != "--replace"), *(["--replace"] if replace else [])]
    if make is _record_and_seed and replace:
        return  # all of it is ours, and asked for
    command = command if command[0] == "train" else command[:2]
    before = contents(place)
    code, text = in_a_fork(command)
    assert code in (6, 7), text
    assert "--replace" not in text or (make in (_record_and_seed, _data_inside) and not replace), text
    assert contents(place) == before


def test_the_working_directory_is_never_replaced(old: Old, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = old.copy(tmp_path)
    before = contents(run)
    monkeypatch.chdir(run / "data")
    code, text = in_a_fork(old.command(run))
    assert code == 6
    assert "the working directory" in text
    assert contents(run) == before


NAMES = (
    "notes.txt", "recipe.yaml.bak", "Report.md", "run.json~", "data/rows.jsonl", "data/findings.jsonl.gz",
    "adapter/mine.safetensors", "adapter/checkpoint.pt",
    "checkpoints/best/adapter.safetensors", "checkpoints/step-1/state.json", "checkpoints/README",
    "seed-42/thoughts.md", "seed-42/data/train.csv", "seed-x/run.json", "tracking/notes.txt", "merged/model.safetensors",
    ".tmp-mine", ".hidden", "data/batch-step-1.jsonl", "src/recipe.yaml", "seed-7/recipe.yaml",
    "checkpoints/step-00000003/x",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_random_folders(old: Old, tmp_path: Path, seed: int) -> None:
    """40 folders each: a run or parts of one, with files of somebody's own among them; those are there afterwards."""
    generator = random.Random(seed)
    loaded = load_recipe(old.recipe)
    outcomes = set()
    for number in range(40):
        folder, own = _random_folder(old, tmp_path / str(number), generator)
        try:
            with run_place(folder, loaded, replace=generator.random() < 0.7) as place:
                (place.folder / "recipe.lock").write_text("new")
                place.take_over(lambda one, other: None)
            outcomes.add("made")
        except StorageError:
            outcomes.add("refused")
        for name, data in own.items():
            assert (folder / name).read_bytes() == data, name
    assert outcomes == {"made", "refused"}


def _random_folder(old: Old, folder: Path, generator: random.Random) -> tuple[Path, dict[str, bytes]]:
    folder.mkdir()
    for prefix in generator.choice([[], [""], [""], ["seed-42"], ["", "seed-42"]]):
        for name in contents(old.run):
            if generator.random() < 0.9:
                (folder / prefix / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(old.run / name, folder / prefix / name)
    own = {name: generator.randbytes(20) for name in generator.sample(NAMES, generator.choice([0, 0, 0, 1, 2]))}
    for name, data in own.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder, own


def test_a_file_that_comes_meanwhile_stops_the_exchange(old: Old, tmp_path: Path) -> None:
    run = old.copy(tmp_path)
    with run_place(run, load_recipe(old.recipe), replace=True) as place:
        (run / "mine.txt").write_text("mine")
        with pytest.raises(StorageError, match=r"other files \(mine.txt\)"):
            place.take_over(lambda one, other: None)
    assert (run / "mine.txt").read_text() == "mine"
    assert adapter_bytes(run) == adapter_bytes(old.run)


def test_what_cannot_follow_puts_the_older_run_back(old: Old, tmp_path: Path) -> None:
    run = old.copy(tmp_path)
    moves: list[tuple[str, str]] = []

    def move(one: Path, other: Path) -> None:
        moves.append((one.name, other.name))
        if other == run:
            raise CheckpointError("a tracker does not start")

    with run_place(run, load_recipe(old.recipe), replace=True) as place, pytest.raises(CheckpointError):
        place.take_over(move)
    assert moves == [(".run.new", "run"), ("run", ".run.new")]
    assert contents(run) == contents(old.run)


def test_a_recipe_alone_is_no_run(old: Old, tmp_path: Path) -> None:
    shutil.copy(old.recipe, tmp_path / "recipe.yaml")
    with pytest.raises(CheckpointError, match="no run to resume"):
        existing_run(tmp_path)
    assert existing_run(old.run) == old.run
    assert not RunPlace(old.run).waits
