"""No command removes or writes over a file that no command of ours wrote: random folders, every option that names one."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from peftcli.cli.entry import run as peft
from peftcli.lock.document import LOCK_NAME

RECIPE = """\
model: builtin:tiny
data: {train: {path: builtin:support, rows: 12}, validation: 4, max_length: 160}
method: {type: lora, r: 2, target_modules: [q_proj]}
training: {max_steps: 2, batch_size: 4, micro_batch_size: 2, learning_rate: 2e-3}
evaluation: {samples: 0}
checkpoint: {every: 1}
threads: 1
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`r.yaml` and a finished run of it, `run`."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "r.yaml").write_text(RECIPE)
    assert peft(["train", str(folder / "r.yaml"), "--output", str(folder / "run"), "--quiet"]) == 0
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "place", symlinks=True)
    (tmp_path / "place" / "prompts.jsonl").write_text('{"prompt": "Hi"}\n')
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


# every option that names an output: the command, the names that it writes, and whether what it wrote once it may
# write again
COMMANDS: dict[str, tuple[list[str], tuple[str, ...], bool]] = {
    "init": (["init", "quickstart", "--output", "new.yaml"], ("new.yaml",), False),
    "init by name": (["init", "quickstart"], ("quickstart.yaml",), False),
    "init ci": (["init", "--ci", "gitlab"], (".gitlab-ci.yml",), False),
    "init ci elsewhere": (["init", "--ci", "github", "--output", "ci/jobs.yml"], ("ci/jobs.yml",), False),
    "lock of a run": (["lock", "run"], ("r.lock",), True),
    "lock of a recipe": (["lock", "r.yaml"], ("r.lock",), True),
    "report": (["report", "run"], ("run/report.html", "run/report.md"), True),
    "comparison": (["report", "run", "run"], ("compare.html", "compare.md"), True),
    "comparison elsewhere": (["report", "run", "run", "--output", "out"], ("out/compare.html", "out/compare.md"), True),
    "generate": (
        ["generate", "run", "--input", "prompts.jsonl", "--output", "answers.jsonl", "--set",
         "generation.max_new_tokens=1"], ("answers.jsonl",), False,
    ),
    "merge": (["merge", "run", "--output", "merged"], ("merged",), False),
    "convert": (["convert", "run/adapter", "--to", "lora", "--r", "2", "--output", "converted"], ("converted",), False),
    "train": (["train", "r.yaml", "--output", "other", "--quiet"], ("other",), False),
}  # fmt: skip


def foreign_file(path: Path) -> None:
    path.write_bytes(b"# mine\n")


def foreign_json(path: Path) -> None:
    path.write_bytes(b'{"format": 1, "packages": {}, "note": "another tool\'s lock"}\n')


def foreign_link(path: Path) -> None:
    path.symlink_to("prompts.jsonl")


def dangling_link(path: Path) -> None:
    path.symlink_to("gone")


def folder_of_files(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_bytes(b"mine")


IN_THE_WAY = [foreign_file, foreign_json, foreign_link, dangling_link, folder_of_files]


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every file with its bytes, every link with what it says, every folder."""
    found: dict[str, bytes | str] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else "/" if path.is_dir() else path.read_bytes()
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_in_the_way_is_left_alone(place: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, names, again = COMMANDS[command]
    for name in names:
        for kind in IN_THE_WAY:
            if (place / name).exists():
                (place / name).unlink()
            (place / name).parent.mkdir(exist_ok=True)
            kind(place / name)
            before = snapshot(place)
            code = peft(arguments)
            what = (command, name, kind.__name__, capsys.readouterr().err)
            after = snapshot(place)
            assert {path: after.get(path) for path in before} == before, what
            # a run may lie where a link leads
            assert code in (2, 6) or (command, kind) == ("train", dangling_link), what
            remove(place / name)
    if (place / "gone").is_dir():
        shutil.rmtree(place / "gone")
    assert peft(arguments) == 0
    assert all((place / name).exists() for name in names)
    before = snapshot(place)
    assert (peft(arguments) == 0) == again
    if not again:
        assert snapshot(place) == before


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def test_results_for_ci(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told before anything is trained; what an earlier job wrote, or an empty file that was made for it, is written."""
    assert peft(["lock", "run"]) == 0
    command = ["reproduce", "r.yaml", "--steps", "1", "--quiet", "--junit"]
    for name in ("result.xml", "result.md"):
        for kind in IN_THE_WAY:
            kind(place / name)
            before = snapshot(place)
            assert peft([*command, "result.xml"]) == 6
            assert "left alone" in capsys.readouterr().err
            assert snapshot(place) == before
            remove(place / name)
    assert peft([*command, "result.md"]) == 2
    assert peft([*command, "r.yaml"]) == 6
    (place / "result.xml").touch()
    for _ in range(2):
        assert peft([*command, "result.xml"]) == 0
    assert "testsuites" in (place / "result.xml").read_text()


def test_a_recipe_named_like_a_lock_has_none(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "X.lock").write_text(RECIPE)
    assert peft(["train", "X.lock", "--output", "of-x", "--quiet"]) == 0
    for arguments in (["lock", "X.lock"], ["lock", "of-x"], ["reproduce", "X.lock"], ["train", "X.lock", "--locked"]):
        assert peft(arguments) == 2, arguments
        assert "rename it: X.yaml" in capsys.readouterr().err
    assert (place / "X.lock").read_text() == RECIPE


def test_two_recipes_do_not_share_a_lock(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peft(["lock", "run"]) == 0
    before = (place / "r.lock").read_bytes()
    shutil.copy(place / "r.yaml", place / "r.yml")
    assert peft(["lock", "r.yml"]) == 6
    assert "this is the lock of" in capsys.readouterr().err
    assert (place / "r.lock").read_bytes() == before
    assert peft(["lock", "r.yaml"]) == 0


def test_a_damaged_lock_of_ours_is_made_again_and_another_tools_is_not(place: Path) -> None:
    assert peft(["lock", "run"]) == 0
    whole = (place / "r.lock").read_bytes()
    for damaged in (whole[: len(whole) // 2], b""):
        (place / "r.lock").write_bytes(damaged)
        assert peft(["lock", "run"]) == 0
        assert (place / "r.lock").read_bytes() == whole
    for foreign in (b'version = 1\n[[package]]\nname = "x"\n', b"[]", b'{"lockfileVersion": 3}'):
        (place / "r.lock").write_bytes(foreign)
        assert peft(["lock", "run"]) == 6
        assert (place / "r.lock").read_bytes() == foreign


def test_what_lies_beside_an_adapter_or_checkpoint_stays(place: Path) -> None:
    run = place / "run"
    (run / "adapter" / "notes").mkdir()
    own = {
        name: random.Random(name).randbytes(20)
        for name in ("adapter/notes.txt", "adapter/notes/more.bin", "checkpoints/.tmp-step-mine", "data/mine.txt")
    }
    for name, data in own.items():
        (run / name).write_bytes(data)
    # as a run that was killed before its record
    (run / "run.json").unlink()
    (run / "adapter" / "adapter_model.safetensors").unlink()
    assert peft(["resume", str(run), "--quiet"]) == 0
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert {name: (run / name).read_bytes() for name in own} == own
    for path in (run / "checkpoints" / "step-00000002").iterdir():
        path.unlink()
    (run / "run.json").unlink()
    (run / "checkpoints" / "step-00000002" / "mine.txt").write_text("mine")
    assert peft(["resume", str(run), "--quiet"]) == 6
    assert (run / "checkpoints" / "step-00000002" / "mine.txt").read_text() == "mine"


def test_names_like_our_temporary_ones(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTCLI_CACHE", str(place / "cache"))
    own = [".tmp-merged-99999999-notes", ".tmp-merged-mine", "cache/tokens/ab/.tmp-mine", "cache/reviews/.tmp-x.json"]
    for name in own:
        (place / name).mkdir(parents=True)
        (place / name / "x").write_text("mine")
    assert peft(["merge", "run", "--output", "merged"]) == 0
    assert peft(["doctor", "--clear-cache"]) == 0
    assert [name for name in own if not (place / name / "x").is_file()] == []


NAMES = (
    *sorted({name for _, names, _ in COMMANDS.values() for name in names}),
    "result.xml", "result.md", "peft-recipe.schema.json", "notes.txt", "runs/mine.txt", ".run.new/x", ".other.old/x",
    "run/notes.txt", "run/adapter/notes.txt", "run/merged/model.safetensors", "seed-42/x", f"out/{LOCK_NAME}",
)  # fmt: skip


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_random_folders(place: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands in any order over files in any place: what nobody of ours wrote is there afterwards, as it was."""
    generator = random.Random(seed)
    for name in generator.sample(NAMES, 9):
        if not (place / name).exists() and all(not part.is_file() for part in (place / name).parents):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            generator.choice([foreign_file, foreign_json, foreign_link, dangling_link])(place / name)
    ours = {name for name in snapshot(place) if name.startswith("run") and "notes" not in name and "merged" not in name}
    before = {name: found for name, found in snapshot(place).items() if name not in ours}
    commands: list[list[str]] = [arguments for arguments, _, _ in COMMANDS.values()]
    commands += [
        ["reproduce", "r.yaml", "--steps", "1", "--junit", generator.choice(NAMES)],
        ["train", "r.yaml", "--output", ".", "--replace"],
        ["train", "r.yaml", "--output", "run", "--replace", "--quiet"],
        ["train", "r.yaml", "--output", "out", "--replace", "--quiet", "--set", "training.max_steps=1"],
        ["resume", "run", "--quiet"],
        ["resume", "."],
        ["merge", "run", "--output", generator.choice(NAMES)],
        ["generate", "run", "--input", "prompts.jsonl", "--output", generator.choice(NAMES), "--set",
         "generation.max_new_tokens=1"],
        ["doctor", "--clear-cache"],
    ]  # fmt: skip
    generator.shuffle(commands)
    for arguments in commands:
        code = peft(arguments)
        text = "".join(capsys.readouterr())
        assert code in (0, 2, 3, 4, 6, 7, 10), (arguments, text)
        after = snapshot(place)
        assert {name: after.get(name) for name in before} == before, (arguments, text)
