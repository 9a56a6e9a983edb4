"""Real signals to real processes: forks of this one, whose run sleeps a little at each step."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftcli.training.loop import fit
from peftcli.training.signals import stop_signals

MakeTiny = Callable[..., Any]
Forked = Callable[[Callable[[], None]], Any]


def run(make_tiny: MakeTiny, folder: Path, *, steps: int = 30, pause: float = 0.02, resume: bool = False) -> None:
    # as a shell starts a job under nohup or with &
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tiny = make_tiny(folder, steps=steps, dropout=0.2, resume=resume)
    inner = tiny.setup.emit

    def emit(event: str, step: int, **facts: Any) -> None:
        inner(event, step, **facts)
        if event == "train":
            print(step, flush=True)
            time.sleep(pause)

    tiny.setup.emit = emit
    fit(tiny.setup)
    print(sorted(tiny.weights().items()))


def steps_on_disk(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_run_resumes(
    make_tiny: MakeTiny, forked: Forked, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    stopped = tmp_path / "stopped"
    child = forked(lambda: run(make_tiny, stopped))
    child.wait_for("9")
    os.kill(child.pid, number)
    returncode, text = child.end()
    assert returncode == code
    assert f"stopped by {number.name}" in text
    assert "Traceback" not in text
    assert "step-00000009" <= max(steps_on_disk(stopped)) <= "step-00000011"
    resumed = forked(lambda: run(make_tiny, stopped, pause=0.0, resume=True)).end()
    whole = forked(lambda: run(make_tiny, tmp_path / "whole", pause=0.0)).end()
    assert resumed[0] == whole[0] == 0
    assert resumed[1].splitlines()[-1] == whole[1].splitlines()[-1]


def test_the_second_signal_leaves_at_once(make_tiny: MakeTiny, forked: Forked, tmp_path: Path) -> None:
    child = forked(lambda: run(make_tiny, tmp_path, pause=10.0))
    child.wait_for("1")
    started = time.monotonic()
    os.kill(child.pid, signal.SIGINT)
    time.sleep(0.2)
    os.kill(child.pid, signal.SIGTERM)
    assert child.end()[0] == 143
    assert time.monotonic() - started < 5.0
    assert steps_on_disk(tmp_path) == ["step-00000000"]


def test_sigusr1_saves_and_goes_on(make_tiny: MakeTiny, forked: Forked, tmp_path: Path) -> None:
    child = forked(lambda: run(make_tiny, tmp_path))
    child.wait_for("5")
    os.kill(child.pid, signal.SIGUSR1)
    child.wait_for("8")
    assert {"step-00000005", "step-00000006", "step-00000007"} & set(steps_on_disk(tmp_path))
    os.kill(child.pid, signal.SIGTERM)
    assert child.end()[0] == 143


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.take_save()
        assert not stop.take_save()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
