"""Lets the tests of this folder share their modules, and trains the run whose copies are spoilt."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from hostile_case import GOOD, one_cpu

from peftcli.cli.entry import run as peft


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of LoRA on the built-in base; to be copied, never changed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    (folder / "r.yaml").write_text(GOOD, encoding="utf-8")
    assert peft(["train", str(folder / "r.yaml"), "--output", str(folder / "run"), "--quiet"]) == 0
    # what the commands of the cases import is then here before the first fork
    threads = torch.get_num_threads()
    for command in (f"generate {folder}/run --prompt Hi --set generation.max_new_tokens=1", f"inspect {folder}/run"):
        with one_cpu():
            assert peft(command.split()) == 0
    torch.set_num_threads(threads)
    return folder / "run"
