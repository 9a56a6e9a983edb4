"""`training.learning_rate: auto`: the method's rate, scaled by the width, and what is said beyond the widths measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peftcli.adapters.learning_rate import auto_rate
from peftcli.adapters.registry import method_names
from peftcli.adapters.surgery import parse_config
from peftcli.models.source import resolve_base
from peftcli.planning.plan import make_plan
from peftcli.planning.text import plan_text
from peftcli.recipe import load_recipe


@pytest.mark.parametrize("name", method_names())
def test_the_rate_falls_with_the_width(name: str) -> None:
    config = parse_config(name)
    narrow, middle, wide = (auto_rate(config, width) for width in (64, 384, 4096))
    assert narrow.rate == pytest.approx(float(f"{config.own_learning_rate():.2g}"))
    assert narrow.rate > middle.rate > wide.rate > 0
    assert ["published" in found.note for found in (narrow, middle, wide)] == [False, False, True]
    assert auto_rate(config, 16384).rate == auto_rate(config, 8192).rate


@pytest.mark.parametrize(
    ("name", "width", "published"),
    [
        ("lora", 2048, 1e-3), ("lora", 4096, 3e-4), ("lora", 5120, 2e-4), ("lora", 8192, 1e-4),
        ("ia3", 3072, 5e-3), ("prefix_tuning", 3072, 5e-3), ("lokr", 3072, 3e-3), ("adaption_prompt", 3072, 5e-3),
        ("vera", 3072, 3e-3),
    ],
)  # fmt: skip
def test_real_widths_are_near_published_rates(name: str, width: int, published: float) -> None:
    """Within a factor of 2.2, far less than what data and length of a run move the best rate."""
    assert published / 2.2 < auto_rate(parse_config(name), width).rate < published * 2.2


@pytest.mark.parametrize(("width", "extrapolates"), [(32, True), (64, False), (384, False), (400, False)])
def test_the_plan_says_that_it_extrapolates(width: int, extrapolates: bool, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_base("builtin:tiny", folder=tmp_path).location)
    tokenizer.save_pretrained(tmp_path / "base")
    sizes = {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": len(tokenizer)}
    LlamaForCausalLM(LlamaConfig(hidden_size=width, **sizes)).save_pretrained(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": " b"}\n' * 8)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: ./base\ndata: rows.jsonl\nmethod: lora\n")
    plan = make_plan(load_recipe(recipe, ()))
    assert any("extrapolated: measured from 64 to 384" in line for line in plan.warnings) == extrapolates
    assert ("extrapolated" in plan_text(plan)) == extrapolates
    recipe.write_text("model: ./base\ndata: rows.jsonl\nmethod: lora\ntraining: {learning_rate: 0.001}\n")
    assert "extrapolated" not in plan_text(make_plan(load_recipe(recipe, ())))
