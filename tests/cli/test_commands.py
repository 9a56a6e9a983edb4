"""The commands as a user meets them: table, help, JSON, errors, exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from peftcli import errors
from peftcli.cli.app import COMMANDS, app
from peftcli.cli.entry import run
from peftcli.cli.starters import starter_names
from peftcli.data.builtin import data_names
from peftcli.recipe import load_recipe

CONTRACT = """
    init validate plan data train resume evaluate generate chat merge export convert combine inspect diff report compare
    migrate push lock reproduce methods explain schema doctor
""".split()  # noqa: SIM905  a table of names reads better as text
SHORT = "model: builtin:tiny\ndata: builtin:support\nmethod: lora\n"


def command(name: str) -> Any:
    group = typer.main.get_command(app)
    return group.get_command(None, name)  # type: ignore[attr-defined]


def options(name: str) -> set[str]:
    return {text for parameter in command(name).params for text in parameter.opts}


def example(name: str) -> str:
    return command(name).epilog.split("Example:")[1].strip()  # type: ignore[no-any-return]


def test_every_command_of_the_contract_is_there() -> None:
    # a hand-over to servers, which came beside the contract's
    assert sorted(COMMANDS) == sorted([*CONTRACT, "serve"])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns_and_ends_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert f"peft {name}" in text.split("Example:")[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_is_one_that_the_parser_takes(name: str) -> None:
    for part in example(name).split("&&"):
        words = shlex.split(part.split(">")[0])
        assert words[0] == "peft"
        command(words[1]).make_context(words[1], words[2:])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_and_quiet(name: str) -> None:
    assert {"--json", "--quiet"} <= options(name)


FLAGS = {
    "init": "--output --list --ci",
    "validate": "--set",
    "plan": "--device-memory --set",
    "data": "--rows --ids --set",
    "train": "--output --replace --locked --smoke --trust-remote-code --set",
    "resume": "",
    "evaluate": "--model --set",
    "generate": "--prompt --input --output --base --model --set",
    "chat": "--base --model --set",
    "merge": "--output --dtype --max-shard-size --model",
    "export": "--to --output --merged --type --model",
    "convert": "--to --r --output --model",
    "combine": "--weights --how --output --model",
    "inspect": "--model",
    "diff": "",
    "compare": "--methods --vary --seeds --budget --tune --output --set",
    "migrate": "--output",
    "push": "--private --revision",
    "reproduce": "--steps --strict --junit",
    "doctor": "--clear-cache",
}


@pytest.mark.parametrize("name", FLAGS)
def test_the_flags_of_the_contract_are_there(name: str) -> None:
    assert set(FLAGS[name].split()) <= options(name)


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "Commands:" in capsys.readouterr().out


def test_every_place_that_lists_the_exit_codes_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    known = {0, *errors.SIGNAL_CODES}
    classes = [errors.PeftcliError]
    while classes:
        found = classes.pop()
        known.add(found.exit_code)
        classes += found.__subclasses__()
    assert run(["--help"]) == 0
    helped = capsys.readouterr().out.partition("Exit codes:")[2].partition("`peft explain")[0]
    table = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    rows = [line for line in table.partition("\n## ")[0].splitlines() if line.startswith("|")][2:]
    in_readme = "".join(cell for row in rows for cell in row.split("|")[1::2])
    for text in (helped, in_readme):
        assert {int(code) for code in re.findall(r"\d+", text)} == known, text
    for code in known:
        assert run(["explain", str(code)]) == 0


def test_usage_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, holds in [
        (["validat", "x"], "did you mean `peft validate`"),
        (["validate"], "RECIPE"),
        (["validate", "--jsn", "x"], "--json"),
        (["validate", "a", "b"], "b"),
        (["data", "x", "--rows", "many"], "--rows"),
        (["--nope"], "--nope"),
    ]:
        assert run(arguments) == 2
        found = capsys.readouterr()
        assert not found.out
        assert found.err.startswith("error: ")
        assert holds in found.err
        assert "--help` shows" in found.err


def test_usage_mistakes_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "--json"]) == 2
    found = capsys.readouterr()
    assert json.loads(found.out)["error"]["exit_code"] == 2
    assert not found.err


# -- recipes -------------------------------------------------------------------------------------------------------


def test_validate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(SHORT)
    assert run(["validate", str(path)]) == 0
    assert "is valid" in capsys.readouterr().out
    assert run(["validate", str(path), "--json", "--set", "training.learning_rate=3"]) == 0
    found = capsys.readouterr()
    document = json.loads(found.out)
    assert (document["valid"], document["name"], document["method"]) == (True, "r", "lora")
    assert len(document["warnings"]) == 1
    assert found.err.startswith("warning: ")


def test_validate_tells_all_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(SHORT + "learnin_rate: 1\nseed: x\n")
    assert run(["validate", str(path)]) == 2
    found = capsys.readouterr()
    assert not found.out
    assert found.err.splitlines()[0] == f"error: {path} has 2 mistakes"
    assert f"at {path}:4:1" in found.err
    assert f"at {path}:5:7" in found.err
    assert run(["validate", str(path), "--json"]) == 2
    found = capsys.readouterr()
    document = json.loads(found.out)["error"]
    assert (document["type"], document["exit_code"], len(document["faults"])) == ("RecipeError", 2, 2)
    assert set(document["faults"][0]) == {"message", "where", "fix"}
    assert not found.err


@pytest.mark.parametrize(
    "arguments",
    [["schema"], ["methods"], ["methods", "dora"], ["explain", "training"], ["explain", "4"], ["init", "--list"]],
)
def test_json_is_one_document_and_nothing_else(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*arguments, "--json"]) == 0
    found = capsys.readouterr()
    assert isinstance(json.loads(found.out), dict)
    assert not found.err
    assert run(arguments) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", starter_names())
def test_starters_are_short_valid_and_on_built_in_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["init", name]) == 0
    path = tmp_path / f"{name}.yaml"
    text = path.read_text()
    assert len(text.splitlines()) <= 8
    assert text.startswith("# yaml-language-server: $schema=")
    recipe = load_recipe(path).recipe
    assert recipe.model.base == "builtin:tiny"
    for source in [*recipe.data.train_sources, *recipe.data.validation_sources]:
        assert source.path.removeprefix("builtin:") in data_names()
    assert run(["init", name]) == 6, "never overwriting"
    assert path.read_text() == text
    assert run(["init", name, "--output", "sub/other.yaml"]) == 0
    assert (tmp_path / "sub" / "other.yaml").read_text() == text


def test_all_starters_of_the_contract_are_there() -> None:
    assert set(starter_names()) >= {"quickstart", "chat", "instruction", "extraction", "continued-pretraining"}


def test_an_unknown_starter_has_a_near_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "quickstrat"]) == 2
    assert "quickstart" in capsys.readouterr().err


# -- errors --------------------------------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    import peftcli.recipe

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(peftcli.recipe, "load_recipe", fail)


EVERY_ERROR = [
    (errors.RecipeError("x"), 2),
    (errors.DataError("x"), 3),
    (errors.ModelError("x"), 4),
    (errors.MergeError("x"), 4),
    (errors.DeviceError("x"), 5),
    (errors.StorageError("x"), 6),
    (errors.CheckpointError("x"), 7),
    (errors.NumericalError("x"), 8),
    (errors.MemoryLimitError("x"), 9),
    (errors.CheckFailed("x"), 10),
    (errors.HubError("x"), 11),
    (errors.Interrupted("x", signal_number=2), 130),
    (errors.Interrupted("x", signal_number=15), 143),
    (MemoryError(), 9),
    (KeyboardInterrupt(), 130),
]


@pytest.mark.parametrize(("error", "code"), EVERY_ERROR, ids=[type(error).__name__ for error, _ in EVERY_ERROR])
def test_every_error_has_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, error)
    assert run(["validate", "x"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_leaves_its_traceback_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(monkeypatch, ValueError("secret hf_" + "a" * 30))
    assert run(["validate", "x"]) == 1
    text = capsys.readouterr().err
    (log,) = tmp_path.glob("*.log")
    assert str(log) in text
    assert "Traceback" not in text
    assert "Traceback" in log.read_text()
    assert "hf_a" not in text + log.read_text()


def test_a_bug_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(monkeypatch, ZeroDivisionError("x"))
    assert run(["validate", "x", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)["error"]
    assert Path(document["log"]).is_file()


def test_the_traceback_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PEFTCLI_TRACEBACK", "1")
    failing(monkeypatch, errors.DataError("x"))
    assert run(["validate", "x"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_errors_cannot_paint_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, errors.DataError("\x1b[31mred\u202e\r", where="a\x07b"))
    assert run(["validate", "x"]) == 3
    text = capsys.readouterr().err
    assert text.isprintable() or text.replace("\n", "").isprintable()


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = "import sys\nfrom peftcli.cli import main\nmain(['schema'])"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_python_m_is_the_same_command() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "peftcli", "explain", "2"], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("exit code 2")


def test_a_narrow_locale_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(SHORT + "zz: é\n", encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii:backslashreplace", "NO_COLOR": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "peftcli", "validate", str(path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert found.returncode == 2
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("peft re", {"report", "reproduce", "resume"}),
        ("peft init ch", {"chat"}),
        ("peft methods do", {"dora"}),
        ("peft explain training.learning", {"training.learning_rate"}),
        ("peft train --re", {"--replace"}),
    ],
)
def test_the_shell_completes(typed: str, wanted: set[str]) -> None:
    environment = {"_PEFT_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    command = [Path(sys.executable).with_name("peft")]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == wanted
