"""A run in a process of its own that a signal ends midway, and its resumption beside one that was never disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from setting import Setting, peft, record_of, require, require_same_run, train


def end_by(setting: Setting, number: int, code: int) -> str:
    """Sends `number` once a few steps are done; the process must end with `code`, and the resumed run must be equal."""
    steps = 16 if setting.tiny else 400
    recipe = setting.recipe(
        training={"max_steps": steps, "precision": "bf16" if setting.on_gpu else "fp32", "batch_size": 4,
                  "micro_batch_size": 2},
        evaluation={"every": None, "samples": 0},
        checkpoint={"every": 4 if setting.tiny else 50},
    )  # fmt: skip
    whole, part = setting.folder / "whole", setting.folder / "part"
    process = _begin(recipe, part)
    at = _wait_for_step(part / "metrics.jsonl", 5, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    setting.note(signalled_after_step=at, exit_code=process.returncode)
    require(process.returncode == code, f"it ended with {process.returncode}, not {code}: {output[-400:]}")
    if code > 0:
        require(record_of(part)["status"] == "interrupted", f"run.json says {record_of(part).get('status')}")
    train(recipe, whole)
    peft("resume", part, "--quiet")
    require_same_run(whole, part, "resumed and uninterrupted")
    return f"ended after step {at} of {steps} with {code}, resumed to the same bytes"


def _begin(recipe: Path, run: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "peftcli", "train", str(recipe), "--output", str(run), "--quiet"]
    paths = [str(Path(__file__).resolve().parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)


def _wait_for_step(metrics: Path, step: int, process: subprocess.Popen[str]) -> int:
    while process.poll() is None:
        done = metrics.read_text(errors="replace").count('"event": "train"') if metrics.is_file() else 0
        if done >= step:
            return done
        time.sleep(0.005)
    output, _ = process.communicate()
    raise AssertionError(
        f"the run ended by itself, with {process.returncode}, before it was signalled: {output[-400:]}"
    )
