"""Processes side by side: as many as there are places, each on its own; a signal reaches all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

import pytest

from peftcli.compare import places, process
from peftcli.compare.process import run_commands
from peftcli.errors import Interrupted


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command is a program of Python, without the weight of ours."""

    def started(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-IS", "-c", *arguments], env={**os.environ, **environment}, start_new_session=True
        )

    monkeypatch.setattr(process, "_started", started)


def _run(programs: Sequence[str], count: int, *, going: bool = True) -> tuple[list[str], dict[int, int]]:
    told: list[str] = []
    codes: dict[int, int] = {}

    def ended(number: int, code: int) -> bool:
        told.append(f"-{number}")
        codes[number] = code
        return going or code == 0

    run_commands(
        [[program] for program in programs], [{"PLACE": str(number)} for number in range(count)],
        begun=lambda number: told.append(f"+{number}"), ended=ended,
    )  # fmt: skip
    return told, codes


def test_one_place_takes_one_after_the_other() -> None:
    told, codes = _run(["import sys; sys.exit(3)", "pass", "import os; os.kill(os.getpid(), 9)"], 1)
    assert told == ["+0", "-0", "+1", "-1", "+2", "-2"]
    assert codes == {0: 3, 1: 0, 2: -9}


def test_two_places_take_two_at_a_time_each_its_own() -> None:
    place = "import os, sys; sys.exit(10 + int(os.environ['PLACE']))"
    told, codes = _run([place, place, "pass"], 2)
    assert told[:2] == ["+0", "+1"]
    assert (codes[0], codes[1]) == (10, 11)


def test_after_a_failure_that_ends_the_others_too_nothing_begins() -> None:
    told, _ = _run(["import sys; sys.exit(6)", "pass"], 1, going=False)
    assert told == ["+0", "-0"]


def test_a_signal_reaches_every_process_and_nothing_more_begins() -> None:
    waits = "import time; time.sleep(60)"
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    began = time.monotonic()
    timer.start()
    told: list[int] = []
    with pytest.raises(Interrupted) as raised:
        run_commands([[waits]] * 3, [{}, {}], begun=told.append, ended=lambda number, code: told.append(code) or True)
    assert raised.value.signal_number == signal.SIGTERM
    assert told == [0, 1], "what a signal stopped is not told as ended"
    assert time.monotonic() - began < 30


def test_every_gpu_takes_one_and_a_cpu_takes_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert places.member_places("cpu", None) == ({},)
    assert places.member_places("cpu", 3) == ({}, {}, {})
    monkeypatch.setattr(places, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(places.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert places.member_places("auto", None) == ({"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc")
    assert places.member_places("auto", 1) == ({"CUDA_VISIBLE_DEVICES": "4"},)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in places.member_places("auto", 3)] == ["4", "GPU-abc", "4"]
    monkeypatch.setattr(places.torch.cuda, "device_count", lambda: 1)
    assert places.member_places("auto", None) == ({},)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="other systems do not tell a process of its parent's end"
)
def test_a_member_ends_with_its_comparison() -> None:
    inner = (
        "import os, signal, sys, time; from peftcli.compare.child import end_with_parent\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('stopped', flush=True), os._exit(0)))\n"
        "end_with_parent(int(sys.argv[1])); print('ready', flush=True); time.sleep(60)"
    )
    outer = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())], start_new_session=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", outer, inner], stdout=subprocess.PIPE, text=True) as comparison:
        assert comparison.stdout is not None
        assert comparison.stdout.readline() == "ready\n"
        comparison.kill()
        assert comparison.stdout.readline() == "stopped\n"
