"""A process of several dies: the run ends in time, says so, and goes on to the bytes that it would have had."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

POINTS = 20
ENDS_WITHIN_SECONDS = 30.0
RECIPE = """
model: builtin:tiny
data: {train: builtin:support, validation: 6, max_length: 128}
method: {type: lora, r: 4, lora_dropout: 0.1}
training: {max_steps: 40, batch_size: 5, micro_batch_size: 1, learning_rate: 2e-3, processes: 2}
evaluation: {every: 10, samples: 0, batch_size: 2}
checkpoint: {every: 4}
threads: 1
"""
pytestmark = pytest.mark.slow


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "peftcli", *arguments, "--quiet"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _run(folder: Path, *arguments: str) -> str:
    process = _start(folder, *arguments)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    return said


def _workers(launcher: int) -> list[int]:
    listed = Path(f"/proc/{launcher}/task/{launcher}/children").read_text(encoding="ascii")
    return [int(number) for number in listed.split()]


def _adapter(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of an uninterrupted run of two, and how long it took."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "r.yaml").write_text(RECIPE, encoding="utf-8")
    started = time.monotonic()
    _run(folder, "train", "r.yaml", "--output", "whole")
    return folder, time.monotonic() - started


@pytest.mark.parametrize("point", range(POINTS))
def test_a_killed_process_ends_the_run_which_goes_on_to_the_same_bytes(whole: tuple[Path, float], point: int) -> None:
    folder, seconds = whole
    drawn = random.Random(point)
    name = f"killed-{point}"
    process = _start(folder, "train", "r.yaml", "--output", name)
    _until_workers(process)
    time.sleep(seconds * drawn.random())
    victims = _workers(process.pid)
    if victims:
        os.kill(drawn.choice(victims), signal.SIGKILL)
    killed = time.monotonic()
    said = process.communicate()[0]
    assert time.monotonic() - killed < ENDS_WITHIN_SECONDS, said
    if process.returncode != 0:
        assert process.returncode == 5, said
        assert "was ended by SIGKILL" in said
        _go_on(folder, name)
    assert _adapter(folder / name) == _adapter(folder / "whole")


def _until_workers(process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if len(_workers(process.pid)) == 2:
            return
        time.sleep(0.05)
    raise AssertionError("no workers were started")


def _go_on(folder: Path, name: str, settings: Sequence[str] = ()) -> None:
    if (folder / name / "recipe.yaml").is_file():
        _run(folder, "resume", name, *settings)
    else:
        # there was nothing yet to go on from
        _run(folder, "train", "r.yaml", "--output", name, "--replace")


@pytest.mark.parametrize("processes", [1, 3])
def test_a_run_of_two_goes_on_with_another_number(whole: tuple[Path, float], processes: int) -> None:
    folder, _ = whole
    name = f"changed-{processes}"
    process = _start(folder, "train", "r.yaml", "--output", name)
    for _ in range(3000):
        if (folder / name / "checkpoints" / "step-00000008").is_dir() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == 143, said
    _go_on(folder, name, ("--set", f"training.processes={processes}"))
    # the parts are those of two, and added in their order: not only near, but the same
    assert _adapter(folder / name) == _adapter(folder / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("target", ["launcher", "leader", "other"])
def test_a_signal_to_any_process_stops_all_after_a_checkpoint(
    whole: tuple[Path, float], number: signal.Signals, target: str
) -> None:
    folder, _ = whole
    name = f"{number.name}-{target}"
    process = _start(folder, "train", "r.yaml", "--output", name)
    for _ in range(3000):
        if (folder / name / "checkpoints" / "step-00000004").is_dir():
            break
        time.sleep(0.05)
    workers = sorted(_workers(process.pid))
    os.kill({"launcher": process.pid, "leader": workers[0], "other": workers[1]}[target], number)
    said = process.communicate()[0]
    assert process.returncode == 128 + number, said
    assert "a checkpoint is saved" in said
    _go_on(folder, name)
    assert _adapter(folder / name) == _adapter(folder / "whole")
