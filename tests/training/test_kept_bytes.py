"""What a pass keeps and runs a layer, held to a share of what peft's own default keeps: counts, the same everywhere."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.benchmarks.kept_bytes import base, ours, theirs

PEFT = {"kept_bytes_per_token_and_layer": 34024.0, "operators_per_layer": 226.0}
"""Of peft 0.21.2 at its defaults, by tests/benchmarks/kept_bytes.py (torch 2.13, transformers 5.24)."""
SHARE = 0.55


def test_a_layer_keeps_about_half_of_what_peft_keeps_and_runs_fewer_operators() -> None:
    found = ours(["low_rank", "gated_mlp"])
    assert found["kept_bytes_per_token_and_layer"] <= SHARE * PEFT["kept_bytes_per_token_and_layer"]
    assert found["operators_per_layer"] <= 0.9 * PEFT["operators_per_layer"]


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="the reference is not installed")
def test_the_figure_of_peft_is_still_so() -> None:
    found = theirs()
    assert found["kept_bytes_per_token_and_layer"] >= PEFT["kept_bytes_per_token_and_layer"]


def test_layers_below_the_lowest_trained_one_keep_nothing() -> None:
    from peftcli import adapters
    from peftcli.kernels.active import next_step, using

    model = base(3)
    adapters.attach(model, {"type": "lora", "r": 4, "target_modules": "all-linear", "layers_to_transform": [2]})
    kept: list[int] = []
    with using(["low_rank"]), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(1) or t, lambda t: t):  # type: ignore[func-returns-value]
        next_step()
        counts = []
        hooks = [layer.register_forward_hook(lambda *_: counts.append(len(kept))) for layer in model.model.layers]
        model.model(input_ids=torch.arange(8)[None], use_cache=False)
    assert len(hooks) == 3
    assert counts[:2] == [0, 0]
    assert counts[2] > 0
