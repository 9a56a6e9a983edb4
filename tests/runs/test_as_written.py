"""One changed bit in what a finished run wrote, or was trained with, is noticed by every command that uses it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from peftcli.cli.entry import run as peft
from peftcli.models.builtin import builtin_base

RECIPE = """\
model: ./base
data: {train: {path: builtin:support, rows: 12}, validation: 4, max_length: 160}
method: {type: lora, r: 2, target_modules: [q_proj, v_proj]}
training: {max_steps: 2, batch_size: 4, micro_batch_size: 2, learning_rate: 2e-3}
evaluation: {samples: 0}
threads: 1
"""
COMMANDS = {
    "evaluate": ["evaluate", "run"],
    "generate": ["generate", "run", "--prompt", "Hi", "--set", "generation.max_new_tokens=1"],
    "merge": ["merge", "run", "--output", "out"],
    "convert": ["convert", "run", "--to", "lora", "--output", "out"],
}
READ = ("adapter_config.json", "adapter_model.safetensors", "peftcli.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(builtin_base("tiny"), folder / "base")
    (folder / "r.yaml").write_text(RECIPE)
    assert peft(["train", str(folder / "r.yaml"), "--output", str(folder / "run"), "--quiet"]) == 0
    return folder


@pytest.fixture
def work(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run with its base, to be spoilt; the adapter names the base by its whole path, so it is named anew."""
    shutil.copytree(trained / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flipped(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def digit_changed(path: Path, key: str) -> None:
    """Another digit in the number behind a key: the file is as good a JSON as before."""
    text = path.read_text()
    start = text.index(f'"{key}"') + len(key) + 2
    place = next(index for index in range(start, len(text)) if text[index].isdigit())
    digit = "7" if text[place] != "7" else "3"
    path.write_text(text[:place] + digit + text[place + 1 :])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_run_as_it_is_serves(work: Path, command: str) -> None:
    assert peft([*COMMANDS[command], "--quiet"]) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bit_of_the_adapter_is_noticed(work: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = work / "run" / "adapter" / "adapter_model.safetensors"
    flipped(path, path.stat().st_size - 4)
    assert peft([*COMMANDS[command], "--quiet"]) == 4
    assert "adapter_model.safetensors is not what the run wrote" in capsys.readouterr().err
    assert not (work / "out").exists()


@pytest.mark.parametrize("name", READ)
def test_every_file_of_the_adapter_is_held_to_its_hash(
    work: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = work / "run" / "adapter" / name
    path.write_bytes(path.read_bytes() + b" " if name.endswith(".json") else path.read_bytes()[:-1] + b"\1")
    assert peft([*COMMANDS["generate"], "--quiet"]) == 4
    assert f"{name} is not what the run wrote" in capsys.readouterr().err


def test_a_file_that_would_be_read_is_not_added(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = work / "run" / "adapter"
    name = "additional_chat_templates/tool_use.jinja"
    (folder / name).parent.mkdir()
    (folder / name).write_text("{{ messages }}")
    assert peft([*COMMANDS["generate"], "--quiet"]) == 4
    assert f"{name} is not what the run wrote" in capsys.readouterr().err


def test_what_nobody_computes_with_may_change(work: Path) -> None:
    (work / "run" / "adapter" / "README.md").write_text("my notes")
    assert peft([*COMMANDS["generate"], "--quiet"]) == 0


@pytest.mark.parametrize("command", [*COMMANDS, "inspect", "report"])
def test_a_digit_of_the_record_is_noticed(work: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    digit_changed(work / "run" / "run.json", "eval_loss")
    assert json.loads((work / "run" / "run.json").read_text())
    words = COMMANDS.get(command, [command, "run"])
    assert peft([*words, "--quiet"]) == 7
    assert "its hash does not match" in capsys.readouterr().err


def test_the_locks_hash_holds_where_the_record_has_none(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of an older version: its record knows no files and no hash of itself."""
    record = json.loads((work / "run" / "run.json").read_text())
    for key in ("adapter_files", "digest"):
        record.pop(key)
    (work / "run" / "run.json").write_text(json.dumps(record))
    assert peft([*COMMANDS["generate"], "--quiet"]) == 0
    path = work / "run" / "adapter" / "adapter_model.safetensors"
    flipped(path, path.stat().st_size - 4)
    assert peft([*COMMANDS["generate"], "--quiet"]) == 4
    assert "is not what the run wrote" in capsys.readouterr().err


def test_a_copy_of_the_adapter_is_on_its_own(work: Path) -> None:
    shutil.copytree(work / "run" / "adapter", work / "copy")
    flipped(work / "copy" / "adapter_model.safetensors", -4)
    assert peft(["generate", "copy", "--prompt", "Hi", "--set", "generation.max_new_tokens=1", "--quiet"]) == 0


def test_inspect_tells_it_and_goes_on(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flipped(work / "run" / "adapter" / "adapter_model.safetensors", -4)
    assert peft(["inspect", "run"]) == 0
    assert "is not what the run wrote" in capsys.readouterr().out


# -- the base ----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_base(trained: Path, work: Path) -> Path:
    """The base that the run names; put back afterwards."""
    shutil.copytree(trained / "base", work / "kept")
    yield trained / "base"
    shutil.rmtree(trained / "base")
    shutil.copytree(work / "kept", trained / "base")


@pytest.mark.parametrize("command", COMMANDS)
def test_another_configuration_of_the_same_weights_is_noticed(
    own_base: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    digit_changed(own_base / "config.json", "rms_norm_eps")
    assert peft([*COMMANDS[command], "--quiet"]) == 4
    assert "config.json of the base is not what the run was trained with" in capsys.readouterr().err


def test_a_bit_of_the_base_is_noticed(own_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own_base / "model.safetensors"
    flipped(path, path.stat().st_size // 2)
    assert peft([*COMMANDS["generate"], "--quiet"]) == 4
    assert "trained on another base" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["", "weights/"])
def test_a_locked_run_does_not_start_on_other_weights_wherever_they_lie(
    work: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(builtin_base("tiny"), work / "base"))
    (work / "r.yaml").write_text(RECIPE)
    name = f"{place}own.safetensors"
    (base / place).mkdir(exist_ok=True)
    (base / "model.safetensors").rename(base / name)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
    assert peft(["lock", "r.yaml", "--quiet"]) == 0
    save_file({key: value * 1.5 for key, value in load_file(base / name).items()}, base / name, {"format": "pt"})
    assert peft(["train", "r.yaml", "--locked", "--output", "new", "--quiet"]) == 10
    assert f"base file {name}" in capsys.readouterr().err
    assert not (work / "new").exists()


def test_weights_that_are_swapped_behind_the_lock_are_noticed_once_loaded(
    trained: Path, work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftcli import run

    base = Path(shutil.copytree(trained / "base", work / "base"))
    (work / "r.yaml").write_text(RECIPE)
    assert peft(["train", "r.yaml", "--output", "first", "--quiet"]) == 0
    assert peft(["lock", "first", "--quiet"]) == 0
    locked_run = run.locked_run

    def then_swapped(*arguments: object) -> object:
        prepared = locked_run(*arguments)  # type: ignore[arg-type]
        path = base / "model.safetensors"
        save_file({key: value * 1.5 for key, value in load_file(path).items()}, path, {"format": "pt"})
        return prepared

    monkeypatch.setattr(run, "locked_run", then_swapped)
    assert peft(["train", "r.yaml", "--locked", "--output", "second", "--quiet"]) == 10
    assert "the base as loaded is not the one that the lock has" in capsys.readouterr().err
