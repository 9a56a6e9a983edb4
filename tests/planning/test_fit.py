"""Runs are fitted to a device, and refused with what would help, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from peftcli.errors import MemoryLimitError, RecipeError
from peftcli.planning.cards import CARDS, card_bytes
from peftcli.planning.plan import Plan, make_plan, unfit
from peftcli.recipe import load_recipe
from peftcli.run import train

GIB = 1 << 30


def recipe(tmp_path: Path, training: dict[str, object]) -> Path:
    rows = tmp_path / "rows.jsonl"
    words = " ".join(["word"] * 150)
    row = {"messages": [{"role": "user", "content": words}, {"role": "assistant", "content": words}]}
    rows.write_text(f"{json.dumps(row)}\n" * 8, encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    section = {
        "model": "builtin:tiny",
        "data": {"train": str(rows), "validation": None, "checks": {"duplicates": "off"}},
        "method": "lora",
        "training": {"batch_size": 8, "max_steps": 1, **training},
        "threads": 1,
    }
    path.write_text(json.dumps(section), encoding="utf-8")
    return path


def plan_of(path: Path, device_memory: int | None = None) -> Plan:
    return make_plan(load_recipe(path, ()), device_memory=device_memory)


def test_rows_and_recomputation_are_chosen_so_that_the_run_fits(tmp_path: Path) -> None:
    # plain passes, of which a row is a share: fast paths hold as much of a loss for few rows as for many
    path = recipe(tmp_path, {"gradient_checkpointing": "auto", "kernels": "off"})
    roomy = plan_of(path, 24 * GIB)
    assert (roomy.resolved.micro_batch_size, roomy.resolved.gradient_checkpointing) == (8, False)
    needed = roomy.memory.peak_bytes
    seen = []
    for twentyfifths in (5, 15, 22):
        plan = plan_of(path, needed - twentyfifths * (roomy.memory.activation_bytes // 25))
        assert plan.budget_bytes is not None
        assert plan.memory.peak_bytes <= plan.budget_bytes
        assert (plan.resolved.steps, plan.resolved.steps_per_epoch) == (1, roomy.resolved.steps_per_epoch)
        seen.append((plan.resolved.micro_batch_size, plan.resolved.gradient_checkpointing))
    # fewer rows at once first, recomputed layers only where one row alone does not fit without
    assert seen == [(4, False), (1, False), (1, True)]
    assert unfit(roomy) is None


def test_what_does_not_fit_is_refused_with_changes_that_would(tmp_path: Path) -> None:
    path = recipe(tmp_path, {"micro_batch_size": 8})
    needed = plan_of(path, 24 * GIB).memory.peak_bytes
    plan = plan_of(path, needed - (1 << 20))
    error = unfit(plan)
    assert isinstance(error, MemoryLimitError)
    assert 1 <= len(plan.remedies) <= 3
    # the first remedy is true
    changed = load_recipe(path, {"training.micro_batch_size": 1})
    assert plan.remedies[0] == "training.micro_batch_size: 1"
    assert unfit(make_plan(changed, device_memory=needed - (1 << 20))) is None


def test_a_run_that_cannot_fit_stops_before_it_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftcli.planning.fit.total_memory_bytes", lambda device, processes=1: 200 << 20)
    with pytest.raises(MemoryLimitError, match="estimated"):
        train(recipe(tmp_path, {}), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_auto_took_is_in_the_recipe_of_the_run(tmp_path: Path) -> None:
    record = train(recipe(tmp_path, {"gradient_checkpointing": "auto"}), output=tmp_path / "run")
    written = load_recipe(tmp_path / "run" / "recipe.yaml", ()).recipe.training
    assert written.gradient_checkpointing is False
    assert record.predicted.peak_memory_bytes
    assert record.plan["memory"]["base_bytes"] == record.parameters.total * 4 - record.parameters.trainable * 4


def test_cards_are_known_by_name(tmp_path: Path) -> None:
    assert card_bytes("RTX 4090") == card_bytes("rtx_4090") == 24 * GIB
    assert all(card_bytes(name) > 0 for name in CARDS)
    with pytest.raises(RecipeError) as caught:
        card_bytes("rtx-4909")
    assert "rtx-4090" in caught.value.render()


def test_seventy_billion_in_bf16_do_not_fit_24_gib(planned: Callable[..., Plan]) -> None:
    plan = planned("llama-3.3-70b", {"type": "lora"}, device_memory=24 * GIB)
    assert unfit(plan) is not None
    assert "131" in plan.remedies[0]
