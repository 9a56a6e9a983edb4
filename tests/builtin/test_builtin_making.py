"""The scripts that made the shipped base: the tokenizer comes out again, and pre-training learns."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from peftcli.models.builtin import builtin_base

MAKE_FOLDER = Path(__file__).parent / "make"


def run_script(name: str, *arguments: object) -> str:
    command = [sys.executable, str(MAKE_FOLDER / name), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_tokenizer_comes_out_again(tmp_path):
    printed = run_script("train_tokenizer.py", tmp_path)
    assert "100.0% of values in their planned pieces" in printed
    made, shipped = (json.loads((folder / "tokenizer.json").read_text()) for folder in (tmp_path, builtin_base("tiny")))
    assert made["model"]["vocab"] == shipped["model"]["vocab"]
    assert made["model"]["merges"] == shipped["model"]["merges"]
    config = (tmp_path / "tokenizer_config.json").read_text()
    assert config == (builtin_base("tiny") / "tokenizer_config.json").read_text()


@pytest.mark.slow
def test_pretraining_learns_and_writes_what_loads(tmp_path):
    from transformers import AutoModelForCausalLM

    printed = run_script("pretrain.py", "--output", tmp_path, "--steps", 40, "--every", 20)
    first, last = (float(loss) for loss in re.findall(r"loss (\d+\.\d+)", printed))
    assert last < first
    made = AutoModelForCausalLM.from_pretrained(tmp_path)
    shipped = AutoModelForCausalLM.from_pretrained(builtin_base("tiny"))
    assert {name: tensor.shape for name, tensor in made.named_parameters()} == {
        name: tensor.shape for name, tensor in shipped.named_parameters()
    }
