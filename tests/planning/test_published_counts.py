"""Counts of trainable parameters equal those that others have published, from `config.json` alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peftcli.adapters.registry import method_names
from peftcli.planning.plan import Plan

ATTENTION = {"target_modules": ["q_proj", "v_proj"]}
PUBLISHED = {
    "lora r=32": ({"type": "lora", "r": 32, **ATTENTION}, 9_175_040),
    "lora r=64": ({"type": "lora", "r": 64, "use_rslora": True, **ATTENTION}, 18_350_080),
    "dora r=32": ({"type": "dora", "r": 32, **ATTENTION}, 9_289_728),
    "ia3": (
        {"type": "ia3", "target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
        286_720,
    ),
    "vera r=256": ({"type": "vera", "r": 256, **ATTENTION}, 129_024),
    "miss r=64": ({"type": "miss", "r": 64, **ATTENTION}, 7_340_032),
    "prefix of 200": ({"type": "prefix_tuning", "num_virtual_tokens": 200}, 11_468_800),
    "prefix of 50": ({"type": "prefix_tuning", "num_virtual_tokens": 50}, 2_867_200),
    "prompt of 200": ({"type": "prompt_tuning", "num_virtual_tokens": 200}, 614_400),
    "norms": ({"type": "ln_tuning"}, 175_104),
}
"""On Llama-3.2-3B: the runs that the reference library publishes (its `method_comparison`, MetaMathQA)."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_on_llama_3b_are_the_published_ones(name: str, planned: Callable[..., Plan]) -> None:
    section, trainable = PUBLISHED[name]
    if section["type"] not in (*method_names(), "dora"):
        pytest.skip(f"there is no {section['type']} yet")
    plan = planned("llama-3.2-3b", section)
    assert plan.trainable == trainable
    # added to the base, or, of a selection, trained in its place
    assert plan.total in (3_212_749_824, 3_212_749_824 + trainable)


def test_lora_of_rank_16_on_one_square_matrix(planned: Callable[..., Plan]) -> None:
    sizes: dict[str, Any] = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 1}
    plan = planned("llama-3.2-3b", {"type": "lora", "r": 16, "target_modules": ["q_proj"]}, config=sizes)
    assert plan.trainable == 131_072
