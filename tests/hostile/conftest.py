"""Lets the tests of this folder share their modules, and trains the run whose copies are spoilt."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from hostile_case import GOOD

from peftcli.cli.entry import run as peft


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of LoRA on the built-in base; to be copied, never changed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    (folder / "r.yaml").write_text(GOOD, encoding="utf-8")
    assert peft(["train", str(folder / "r.yaml"), "--output", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"
