"""Lets the tests of this folder share their modules, and writes the bases that several of them use."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from merge_case import llama, write_base

from peftcli.jobs import opening


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models this small only lose by sharing their work."""
    monkeypatch.setattr(opening, "resolve_threads", lambda wanted: 1)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "llama", llama())


@pytest.fixture(scope="session")
def half_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "half", llama(torch.bfloat16))
