"""What a checkpoint knows is not taken from a log that was cut, zeroed or changed; a damaged lock stops no sound run."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from whole_run import Child, adapter_bytes, at_step, in_a_fork, losses, send, write_recipe

from peftcli.training.history import history_tensors, take_history

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture(scope="module")
def runs(warm: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole run, and one that was stopped after its second step of three."""
    folder = tmp_path_factory.mktemp("mended")
    recipe = write_recipe(folder)
    command = ["train", str(recipe), "--quiet", "--output"]
    assert in_a_fork([*command, str(folder / "whole")])[0] == 0
    assert Child([*command, str(folder / "run")], arm=at_step(2, send(signal.SIGTERM))).end()[0] == 143
    return folder / "whole", folder / "run"


def _lines(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def _digit(lines: list[bytes], event: bytes, key: bytes) -> list[bytes]:
    """Another first decimal, or last digit, of a number in the last line of an event."""
    at = max(number for number, line in enumerate(lines) if b'"%s"' % event in line)
    start = lines[at].index(b'"%s": ' % key) + len(key) + 4
    end = min(place for mark in (b",", b"}") if (place := lines[at].find(mark, start)) > 0)
    place = lines[at].find(b".", start, end) + 1 or end - 1
    other = b"3" if lines[at][place : place + 1] != b"3" else b"4"
    lines[at] = lines[at][:place] + other + lines[at][place + 1 :]
    return lines


DAMAGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "gone": lambda lines: [],
    "cut": lambda lines: lines[:2],
    "zeros": lambda lines: [*lines[:2], bytes(sum(map(len, lines[2:])))],
    "zeros and a line": lambda lines: [*lines[:2], bytes(40) + b"\n", *lines[4:]],
    "loss": lambda lines: _digit(lines, b"train", b"loss"),
    "norm": lambda lines: _digit(lines, b"train", b"grad_norm"),
    "tokens": lambda lines: _digit(lines, b"train", b"tokens"),
    "step": lambda lines: _digit(lines, b"train", b"step"),
    "evaluation": lambda lines: _digit(lines, b"eval", b"eval_loss"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_log_is_mended(runs: tuple[Path, Path], tmp_path: Path, damage: str) -> None:
    whole, run = runs[0], tmp_path / "run"
    shutil.copytree(runs[1], run)
    _lines(run / "metrics.jsonl", DAMAGES[damage])
    code, text = in_a_fork(["resume", str(run)])
    assert code == 0, text
    assert "metrics.jsonl was damaged" in text
    assert adapter_bytes(run) == adapter_bytes(whole)
    assert losses(run) == losses(whole)
    assert _expected(run) == _expected(whole)
    assert _evaluations(run) == _evaluations(whole)
    assert any("metrics.jsonl was damaged" in said for said in json.loads((run / "run.json").read_text())["warnings"])


def _expected(run: Path) -> object:
    return json.loads((run / "recipe.lock").read_text())["expected"]


def _evaluations(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["eval_loss"] for line in lines if line["event"] == "eval"}


def test_a_sound_log_is_left_alone(runs: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs[1], run)
    before = (run / "metrics.jsonl").read_bytes()
    code, text = in_a_fork(["resume", str(run)])
    assert code == 0
    assert "damaged" not in text
    assert (run / "metrics.jsonl").read_bytes().startswith(before)


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', '{"format": 9}'])
def test_a_damaged_lock_is_written_anew(runs: tuple[Path, Path], tmp_path: Path, text: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs[1], run)
    (run / "recipe.lock").write_text(text)
    code, said = in_a_fork(["resume", str(run)])
    assert code == 0, said
    assert "recipe.lock is damaged" in said
    assert adapter_bytes(run) == adapter_bytes(runs[0])
    assert _expected(run) == _expected(runs[0])


def test_history_is_exact() -> None:
    line = {"learning_rate": 0.1, "grad_norm": 1 / 3, "tokens": 2**52 + 1, "trained_tokens": 0, "seconds": 0.7}
    lines = [line | {"batch": "00ffee000001", "draws": "0000000a"}, None, line]
    tensors = history_tensors(lines)
    assert take_history(tensors, 3) == lines
    assert tensors == {}
    assert take_history({}, 2) == [None, None]
    with pytest.raises(ValueError, match="3 steps"):
        take_history(history_tensors(lines), 4)
