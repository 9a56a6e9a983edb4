"""Signals to a whole `peft train`: the step is finished, saved and gone on from, exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from whole_run import (
    Child,
    adapter_bytes,
    at_step,
    in_a_fork,
    losses,
    of_this_checkout,
    require_whole,
    send,
    write_recipe,
)

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = write_recipe(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("every: 1, keep: 1", "every: null, keep: 1"))
    return path


@pytest.fixture
def whole(recipe: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "whole"
    code, text = in_a_fork(["train", str(recipe), "--output", str(folder), "--quiet"])
    assert code == 0, text
    return folder


def started(recipe: Path, folder: Path, act: Callable[[], object]) -> tuple[int, str]:
    return Child(["train", str(recipe), "--output", str(folder), "--quiet"], arm=at_step(2, act)).end()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_saves_and_goes_on(recipe: Path, whole: Path, tmp_path: Path, number: int, code: int) -> None:
    folder = tmp_path / "run"
    found, text = started(recipe, folder, send(number))
    assert found == code, text
    assert "peft resume" in text
    assert "Traceback" not in text
    assert sorted(losses(folder)) == [1, 2]
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] == "interrupted"
    assert (folder / "checkpoints" / "step-00000002" / "manifest.json").is_file()
    assert in_a_fork(["resume", str(folder), "--quiet"])[0] == 0
    require_whole(folder, whole, number)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_second_leaves_at_once(recipe: Path, whole: Path, tmp_path: Path, first: int) -> None:
    folder = tmp_path / "run"

    def twice() -> None:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    before = time.monotonic()
    found, text = started(recipe, folder, twice)
    assert found == 130, text
    assert time.monotonic() - before < 40
    assert not (folder / "checkpoints" / "step-00000002").exists(), "nothing is saved any more"
    assert in_a_fork(["resume", str(folder), "--quiet"])[0] == 0
    require_whole(folder, whole, first)


def test_sigusr1_saves_and_the_run_ends_as_ever(recipe: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    found, text = started(recipe, folder, send(signal.SIGUSR1))
    assert found == 0, text
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert 2 in [line["step"] for line in lines if line["event"] == "checkpoint"]
    assert adapter_bytes(folder) == adapter_bytes(whole)
    assert losses(folder) == losses(whole)


@pytest.mark.parametrize("moment", ["before training", "after training"])
def test_sigusr1_is_harmless_outside_of_training(recipe: Path, whole: Path, tmp_path: Path, moment: str) -> None:
    """There is nothing to save yet, or any more; a scheduler does not know that."""
    from peftcli import run as sentence

    name = {"before training": "assemble", "after training": "score_run"}[moment]
    folder = tmp_path / "run"

    def arm() -> None:
        step = getattr(sentence, name)

        def signalled(*args: object, **kwargs: object) -> object:
            os.kill(os.getpid(), signal.SIGUSR1)
            return step(*args, **kwargs)

        setattr(sentence, name, signalled)

    code, text = Child(["train", str(recipe), "--output", str(folder), "--quiet"], arm=arm).end()
    assert code == 0, text
    assert adapter_bytes(folder) == adapter_bytes(whole)


def test_under_nohup(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """A background job, for which SIGINT is ignored and its terminal may hang up."""
    folder, program = tmp_path / "run", Path(__file__).with_name("slow_process.py")
    command = ["nohup", sys.executable, str(program), "train", str(recipe), "--output", str(folder), "--quiet"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=of_this_checkout(),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )  # fmt: skip
        wait_for_a_step(folder, process)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130, (tmp_path / "log").read_text()
    assert in_a_fork(["resume", str(folder), "--quiet"])[0] == 0
    require_whole(folder, whole, "nohup")


def wait_for_a_step(folder: Path, process: subprocess.Popen[bytes]) -> None:
    metrics = folder / "metrics.jsonl"
    for _ in range(1200):
        if metrics.is_file() and '"event": "train"' in metrics.read_text(encoding="utf-8"):
            return
        assert process.poll() is None
        time.sleep(0.1)
    pytest.fail("no step within two minutes")
