"""Advice that a run can follow: nothing that is set already, and a word about what can never act."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftcli.cli.entry import run as peft
from peftcli.planning.plan import make_plan
from peftcli.recipe import load_recipe
from peftcli.training.config import TrainingConfig
from peftcli.training.stepper import smaller

RECIPE = """\
model: builtin:tiny
data: {train: {path: builtin:support, rows: 12}, validation: 4, max_length: 160}
method: lora
training: {max_steps: STEPS, batch_size: 4, micro_batch_size: 1, early_stopping: {patience: 3}, MORE}
evaluation: {every: EVERY}
threads: 1
"""


def written(folder: Path, *, steps: int = 20, every: str = "2", more: str = "") -> Path:
    text = RECIPE.replace("STEPS", str(steps)).replace("EVERY", every).replace(", MORE", f", {more}" if more else "")
    (folder / "r.yaml").write_text(text)
    return folder / "r.yaml"


@pytest.mark.parametrize(
    ("steps", "every", "acts"),
    [(20, "2", True), (7, "2", True), (6, "2", False), (20, "100", False), (20, "null", False)],
)
def test_a_rule_that_cannot_act_is_told(tmp_path: Path, steps: int, every: str, acts: bool) -> None:
    plan = make_plan(load_recipe(written(tmp_path, steps=steps, every=every)))
    told = [warning for warning in plan.warnings if warning.startswith("training.early_stopping cannot act")]
    assert bool(told) != acts, plan.warnings
    assert all("patience is 3" in warning and f"{steps} steps" in warning for warning in told)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_what_is_set_already_is_not_advised(
    tmp_path: Path, checkpointing: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    # without fast paths, which leave recomputation little to save on rows this short
    more = f'gradient_checkpointing: {str(checkpointing).lower()}, kernels: "off"'
    recipe = written(tmp_path, more=more)
    needed = make_plan(load_recipe(recipe), device_memory=24 << 30).memory.peak_bytes
    assert peft(["plan", str(recipe), "--device-memory", str(needed - 100_000)]) == 9
    told = capsys.readouterr().err
    assert ("training.gradient_checkpointing" in told) != checkpointing
    assert "training.micro_batch_size" not in told.partition("fix:")[2].partition(";")[0]
    assert ("a smaller base" in told) == checkpointing
    found = smaller(TrainingConfig(gradient_checkpointing=checkpointing))
    assert ("training.gradient_checkpointing" in found) != checkpointing
