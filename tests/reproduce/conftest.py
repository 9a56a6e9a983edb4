"""A run on copies of the built-in base and rows, locked once, copied for each test that changes something."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import peftcli
from peftcli.data.builtin import builtin_data
from peftcli.models.builtin import builtin_base
from peftcli.runs.locking import lock_path_of

RECIPE = """\
model: ./base
data: {train: ./rows.jsonl, validation: 8, max_length: 256}
method: {type: lora, r: 4}
training: {max_steps: 6, batch_size: 4, learning_rate: 2e-3}
evaluation: {samples: 0}
checkpoint: {every: null}
threads: 1
"""
ROWS = 60


@pytest.fixture(scope="session")
def locked_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`work/` with base, rows, recipe and its lock; `work/run` is the run that the lock is of."""
    folder = tmp_path_factory.mktemp("locked") / "work"
    folder.mkdir()
    shutil.copytree(builtin_base("tiny"), folder / "base")
    lines = builtin_data("support").read_text(encoding="utf-8").splitlines(keepends=True)[:ROWS]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    peftcli.train(folder / "tiny.yaml", output=folder / "run")
    lock_path_of(folder / "run")
    return folder


@pytest.fixture
def work(locked_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, elsewhere, as the working directory."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(locked_once, folder)
    monkeypatch.chdir(folder)
    return folder
