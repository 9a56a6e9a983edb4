"""Lets the tests of this folder share their modules; one warm process with one thread, so that it can be forked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from whole_run import one_cpu, write_recipe

from peftcli.cli.entry import run as peft


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    if torch.cuda.device_count():
        pytest.skip("autograd's device threads do not survive a fork; run with CUDA_VISIBLE_DEVICES=''")


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Everything that a run imports is here before the first fork."""
    folder = tmp_path_factory.mktemp("warm")
    with one_cpu():
        assert peft(["train", str(write_recipe(folder)), "--output", str(folder / "run"), "--quiet"]) == 0
