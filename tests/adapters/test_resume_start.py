"""`peft resume` takes an adapter from its checkpoint: no start is computed or drawn a second time."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import peftcli
from peftcli.adapters.base import InitContext
from peftcli.errors import Interrupted
from peftcli.runs import attaching
from peftcli.training.stepper import Stepper

METHODS: dict[str, dict[str, Any]] = {
    "eva": {"type": "eva", "r": 2, "eva_config": {"rho": 2.0}},
    "lora_ga": {"type": "lora_ga", "r": 2},
    "pissa": {"type": "lora", "r": 2, "init_lora_weights": "pissa_niter_2"},
    "prefix_text": {"type": "prefix_tuning", "num_virtual_tokens": 3},
    "p_tuning": {"type": "p_tuning", "num_virtual_tokens": 3, "encoder_hidden_size": 8},
}


@pytest.fixture
def recipe(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"prompt": "order {n}", "completion": " number {n * 7}"}}\n' for n in range(16))
    )
    lines = "".join(f"  {key}: {value}\n" for key, value in request.param.items())
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: builtin:tiny\ndata: {{train: rows.jsonl, max_length: 64}}\nmethod:\n{lines}threads: 1\n"
        "training: {max_steps: 4, batch_size: 4}\ncheckpoint: {every: 2}\n"
    )
    return path


def interrupted(monkeypatch: pytest.MonkeyPatch, recipe: Path, folder: Path) -> None:
    step = Stepper.train_step

    def stopping(self: Stepper) -> None:
        step(self)
        if self.keeper.state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "train_step", stopping)
        with pytest.raises(Interrupted):
            peftcli.train(recipe, output=folder)


@pytest.mark.parametrize("recipe", METHODS.values(), ids=METHODS, indirect=True)
def test_no_start_is_repeated(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peftcli.train(recipe, output=tmp_path / "whole")
    interrupted(monkeypatch, recipe, tmp_path / "resumed")

    def never(*args: object, **named: object) -> InitContext:
        raise AssertionError("the start was computed again")

    monkeypatch.setattr(attaching, "init_context", never)
    monkeypatch.setattr(attaching, "attach", never)
    peftcli.resume(tmp_path / "resumed")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        whole, resumed = (tmp_path / run / "adapter" / name for run in ("whole", "resumed"))
        assert whole.read_bytes() == resumed.read_bytes(), name
