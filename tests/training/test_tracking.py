"""Trackers: off by default, told when a package is missing, and nothing of a run depends on them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking as accelerate_tracking
from accelerate.tracking import GeneralTracker

import peftcli
from peftcli.cli.entry import run as peft
from peftcli.lock.lock_file import read_lock
from peftcli.training import trackers
from peftcli.training.tracker_names import TRACKER_MODULES, TRACKER_PACKAGES

LOGGED: list[tuple[str, Any, Any]] = []


class Notebook(GeneralTracker):
    """Writes down what it is told."""

    name = "notebook"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, run_name: str) -> None:
        super().__init__()
        LOGGED.append(("start", run_name, None))

    @property
    def tracker(self) -> Notebook:
        return self

    def start(self) -> None: ...

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        LOGGED.append(("config", values, None))

    def log(self, values: dict[str, Any], step: int | None = None, **rest: Any) -> None:
        LOGGED.append(("log", values, step))

    def finish(self) -> None:
        LOGGED.append(("finish", None, None))


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    LOGGED.clear()
    monkeypatch.setitem(TRACKER_PACKAGES, "notebook", "notebook")
    monkeypatch.setitem(TRACKER_MODULES, "notebook", ("json",))
    monkeypatch.setitem(accelerate_tracking.LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    if not hasattr(accelerate_tracking, "register_tracker_class"):
        # accelerate 1.10 lets no names through but its own
        monkeypatch.setattr(trackers, "filter_trackers", lambda names, folder: names)


def test_measurements_reach_the_tracker_and_change_nothing(work: Path, notebook: None) -> None:
    before = dict(os.environ)
    peftcli.train("tiny.yaml", output="tracked", overrides=["tracking=[notebook]"])
    kinds = [kind for kind, _, _ in LOGGED]
    assert kinds[:2] == ["start", "config"]
    assert kinds[-1] == "finish"
    logged = [(step, set(values)) for kind, values, step in LOGGED if kind == "log"]
    assert [step for step, names in logged if "train/loss" in names] == [1, 2, 3, 4, 5, 6]
    assert [step for step, names in logged if "eval/loss" in names] == [0, 6]
    assert next(values for kind, values, _ in LOGGED if kind == "config")["method.r"] == 4
    expected = read_lock(work / "tiny.lock").expected
    assert read_lock(work / "tracked" / "recipe.lock").expected == expected
    assert dict(os.environ) == before, "variables of a run end with it"


def test_a_tracker_that_breaks_does_not_stop_the_run(
    work: Path, notebook: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Notebook, values: dict[str, Any], step: int | None = None, **rest: Any) -> None:
        raise OSError("the server has gone")

    monkeypatch.setattr(Notebook, "log", broken)
    record = peftcli.train("tiny.yaml", output="tracked", overrides=["tracking=[notebook]", "training.max_steps=2"])
    assert record.status == "completed"
    assert any("server has gone" in warning for warning in record.warnings)


def test_a_tracker_that_does_not_start_is_told_before_anything_is_trained(
    work: Path, notebook: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(self: Notebook, run_name: str) -> None:
        raise ValueError("no such\nserver")

    monkeypatch.setattr(Notebook, "__init__", refused)
    before = dict(os.environ)
    assert peft(["train", "tiny.yaml", "--output", "tracked", "--set", "tracking=[notebook]", "--quiet"]) == 5
    assert "tracking by notebook does not start: no such server" in capsys.readouterr().err
    assert not (work / "tracked" / "metrics.jsonl").exists()
    assert dict(os.environ) == before


def test_a_tracker_that_ends_badly_leaves_the_run_complete(
    work: Path, notebook: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Notebook) -> None:
        raise OSError("the server has gone")

    monkeypatch.setattr(Notebook, "finish", broken)
    record = peftcli.train("tiny.yaml", output="tracked", overrides=["tracking=[notebook]", "training.max_steps=2"])
    assert record.status == "completed"
    assert "notebook did not end well: the server has gone" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_missing_package_is_told_with_its_pip_line(
    name: str, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    assert peft(["train", "tiny.yaml", "--set", f"tracking=[{name}]", "--output", "x", "--quiet"]) == 5
    assert f"pip install {name}" in capsys.readouterr().err


def test_a_run_without_trackers_imports_none(work: Path) -> None:
    code = (
        "import sys, peftcli\n"
        "peftcli.train('tiny.yaml', output='plain', overrides=['training.max_steps=3'])\n"
        f"print([name for name in {list(TRACKER_PACKAGES)!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "[]", done.stderr[-800:]
    assert not (work / "plain" / "tracking").exists()


WRITTEN = {
    "tensorboard": ("tensorboard", "events.out.tfevents.*"),
    "wandb": ("wandb", "*.wandb"),
    "mlflow": ("sqlalchemy", "mlflow.db"),
    "trackio": ("trackio", "*.db"),
}
"""Tracker -> the module that it cannot do without, and the file that it leaves in the run."""


@pytest.mark.parametrize("name", WRITTEN)
def test_a_real_tracker_writes_beside_the_run_and_nowhere_else(name: str, work: Path) -> None:
    needed, pattern = WRITTEN[name]
    if any(importlib.util.find_spec(module) is None for module in (needed, name)):
        pytest.skip(f"{name} is not installed (pip install 'peftcli[track]')")
    before = sorted(path.name for path in work.iterdir())
    # a process of its own: some trackers live until Python ends
    command = [sys.executable, "-m", "peftcli", "train", "tiny.yaml", "--output", "tracked", "--quiet"]
    done = subprocess.run(
        [*command, "--set", f"tracking=[{name}]", "--json"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not any("tracking" in warning for warning in json.loads(done.stdout)["warnings"])
    assert list((work / "tracked" / "tracking").rglob(pattern))
    assert sorted(path.name for path in work.iterdir()) == sorted([*before, "tracked"])
