"""Lets the tests of this folder share their modules; one thread, so that a warm process can be forked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    if torch.cuda.device_count():
        pytest.skip("autograd's device threads do not survive a fork; run with CUDA_VISIBLE_DEVICES=''")
