from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from peftcli.training.events import EventLog
from peftcli.training.progress import NoProgress, PlainProgress, RichProgress, TrainingProgress, build_progress


def drive(progress: TrainingProgress) -> None:
    progress.start(0, 40)
    for step in range(1, 41):
        progress.step(step, 2.0 / step, 1234.5)
    progress.evaluating("score", 4, 8)
    progress.evaluating("score", 8, 8)
    progress.evaluated(40, {"eval_loss": 0.25})
    progress.say("warning: something")
    progress.stop()


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    drive(PlainProgress())
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0].startswith("step 1/40  loss 2.0000  1,234 tokens/s  ETA 0:00:0")
    assert lines[1].startswith("step 40/40  loss 0.0500")
    assert lines[2:] == ["step 40  eval_loss 0.2500", "warning: something"]


def test_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    drive(RichProgress(Console(file=screen, force_terminal=True, width=120)))
    text = screen.getvalue()
    for part in ("40/40", "loss 0.0500", "1,234 tokens/s", "ETA", "eval_loss 0.2500", "warning: something"):
        assert part in text
    assert capsys.readouterr().out == ""


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = build_progress(quiet=True)
    assert isinstance(quiet, NoProgress)
    drive(quiet)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert isinstance(build_progress(), PlainProgress)


def test_events_are_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = EventLog(path)
    log("train", 1, loss=0.1, grad_norm=math.inf)
    log("eval", 1, eval_loss=math.nan)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"event": "train", "step": 1, "loss": 0.1, "grad_norm": None},
        {"event": "eval", "step": 1, "eval_loss": None},
    ]


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    EventLog(path)("train", 1, loss=0.1)
    with path.open("a") as stream:
        stream.write('{"event": "train", "st')
    EventLog(path)("train", 2, loss=0.2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
