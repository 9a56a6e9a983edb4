"""The skill that the built-in base is made for: learnt by three kinds of method, scored exactly on held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftcli.run import train

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
AUTO = {"training.learning_rate": "auto"}


@pytest.mark.parametrize(
    ("method", "overrides", "least"), [("lora", {}, 0.9), ("bottleneck", AUTO, 0.8), ("prompt_tuning", AUTO, None)]
)
def test_the_skill_is_learnt(
    method: str,
    overrides: dict[str, Any],
    least: float | None,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    changes = {**overrides, "method.type": method, "threads": 1, "evaluation.samples": 0}
    record = train(QUICKSTART, output=tmp_path / "run", overrides=changes)
    base, tuned, bounds = record.evaluation.base, record.evaluation.tuned, record.evaluation.intervals
    base_match, match = base["eval_exact_match"], tuned["eval_exact_match"]
    record_property(
        "count",
        f"skill, {method}: exact match {base_match:.1%} -> {match:.1%} of {record.evaluation.rows} rows, loss "
        f"{base['eval_loss']:.3f} -> {tuned['eval_loss']:.2g}, {record.seconds.training:.0f} s of training on one thread",
    )
    assert record.evaluation.rows >= 200
    assert base_match < 0.1
    if least is not None:
        assert match > least
    assert bounds.tuned["eval_loss"][1] < bounds.base["eval_loss"][0]
