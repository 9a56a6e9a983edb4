"""Lets the tests of this folder share their modules, and trains the run that some entries damage."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from entry import GOOD, Place

from peftcli.cli.entry import run as peft


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of LoRA on the built-in base; to be copied, never changed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    (folder / "r.yaml").write_text(GOOD, encoding="utf-8")
    assert peft(["train", str(folder / "r.yaml"), "--output", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, trained: Path) -> Iterator[Place]:
    """The working directory of an entry."""
    # not below pytest's own folder, which only its owner may enter
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.chdir(folder)
        yield Place(Path(folder), monkeypatch, trained)
        monkeypatch.undo()
