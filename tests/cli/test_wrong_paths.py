"""What is no run, no adapter and no recipe, given to every command that takes a path: one exit code and one way to say it.

A path that a command reads a run or adapter from: 4 (`resume`: 7, it looks for a checkpoint). A path that it reads a
recipe from: 2. Where both will do, a folder is held for a run and all else for a recipe. A path to rows: 3.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from peftcli.cli.app import COMMANDS
from peftcli.cli.entry import run as peft
from peftcli.models.builtin import builtin_base

Call = Callable[[str], list[str]]
RECIPE: dict[str, Call] = {
    "validate": lambda path: ["validate", path],
    "plan": lambda path: ["plan", path],
    "data": lambda path: ["data", path],
    "compare": lambda path: ["compare", path, "--methods", "lora,ia3", "--output", "made"],
    "train": lambda path: ["train", path, "--output", "made"],
}
RUN: dict[str, Call] = {
    "evaluate": lambda path: ["evaluate", path],
    "generate": lambda path: ["generate", path, "--prompt", "hi"],
    "chat": lambda path: ["chat", path],
    "merge": lambda path: ["merge", path, "--output", "made"],
    "export": lambda path: ["export", path, "--to", "peft", "--output", "made"],
    "convert": lambda path: ["convert", path, "--to", "lora", "--output", "made"],
    "combine": lambda path: ["combine", path, path, "--weights", "1,1", "--how", "cat", "--output", "made"],
    "inspect": lambda path: ["inspect", path],
    "diff": lambda path: ["diff", path, path],
    "push": lambda path: ["push", path, "me/mine", "--yes"],
    "serve": lambda path: ["serve", path],
    "report": lambda path: ["report", path],
    "report of two": lambda path: ["report", path, path],
}
EITHER: dict[str, Call] = {"lock": lambda path: ["lock", path], "reproduce": lambda path: ["reproduce", path]}
RESUME: dict[str, Call] = {"resume": lambda path: ["resume", path]}
WITHOUT_A_PATH = {"init", "methods", "explain", "schema", "doctor"}
OF_OTHERS = {"migrate"}
"""Takes files of other tools: tests/migrating."""

NEITHER = "this is neither a run nor an adapter"
AS_A_RUN = {
    "empty": NEITHER,
    "another": NEITHER,
    "notes.txt": "this is a file, not a run or adapter folder",
    "nowhere": "no such run or adapter folder",
}
AS_A_RECIPE = {
    "empty": "empty is a folder, not a recipe",
    "another": "another is a folder, not a recipe",
    "notes.txt": "a recipe is a section of `key: value` lines",
    "nowhere": "recipe not found: nowhere",
}
MODEL_TOO = {"evaluate", "generate", "chat", "inspect"}
"""Commands for which a model folder is something."""


def cells() -> list[tuple[list[str], int, str]]:
    """Command line, exit code and what is said."""
    table = []
    for call in RECIPE.values():
        table += [(call(path), 2, said) for path, said in AS_A_RECIPE.items()]
    for call in RUN.values():
        table += [(call(path), 4, said) for path, said in AS_A_RUN.items()]
    for call in EITHER.values():
        table += [(call(path), 4, AS_A_RUN[path]) for path in ("empty", "another")]
        table += [(call(path), 2, AS_A_RECIPE[path]) for path in ("notes.txt", "nowhere")]
    for call in RESUME.values():
        table += [(call(path), 7, "there is no run to resume here") for path in AS_A_RUN]
    return table


def model_cells() -> list[list[str]]:
    return [call("base") for name, call in {**RUN, **EITHER}.items() if name not in MODEL_TOO]


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "package.json").write_text(json.dumps({"name": "another"}))
    (tmp_path / "notes.txt").write_text("remember the milk\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))


def test_the_table_has_every_command() -> None:
    named = {name.split()[0] for name in (*RECIPE, *RUN, *EITHER, *RESUME)}
    assert named | WITHOUT_A_PATH | OF_OTHERS == set(COMMANDS)


@pytest.mark.parametrize(("arguments", "code", "said"), cells(), ids=lambda value: str(value)[:40])
def test_a_path_that_is_nothing(
    arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert peft(arguments) == code
    shown = capsys.readouterr()
    assert said in shown.err
    assert "  fix: " in shown.err
    assert not shown.out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", model_cells(), ids=lambda value: str(value)[:40])
def test_a_whole_model_where_an_adapter_is_wanted(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(builtin_base("tiny"), tmp_path / "base")
    assert peft(arguments) == 4
    assert "this is a whole model, without an adapter" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["empty", "another", "nowhere"])
def test_rows_that_are_none(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert peft(["init", "--data", path]) == 3
    assert path in capsys.readouterr().err


def test_a_run_that_has_not_come_to_its_record(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a run, so that the code is another: one that says to go on."""
    (work / "run" / "run.json").unlink()
    (work / "run" / "recipe.lock").unlink()
    for arguments in (["report", "run"], ["lock", "run"], ["report", "run", "run"]):
        assert peft(arguments) == 7, arguments
        assert "peft resume run" in capsys.readouterr().err


def test_one_report_lies_in_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peft(["report", str(tmp_path), "--output", str(tmp_path / "elsewhere")]) == 2
    assert "--output is for a comparison" in capsys.readouterr().err


def test_an_adapter_is_no_run_to_report_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "adapter_config.json").write_text("{}")
    assert peft(["report", "alone"]) == 4
    assert "not its run" in capsys.readouterr().err
