"""`--budget 10min`: steps follow from what was measured, and stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from peftcli.compare.budget import parse_budget
from peftcli.compare.job import compare
from peftcli.compare.members import Member
from peftcli.compare.plans import Known
from peftcli.compare.session import Ended
from peftcli.compare.timing import MEASURED_STEPS, measure
from peftcli.errors import RecipeError
from peftcli.recipe import Recipe
from peftcli.reports.record import RunRecord, load_record

Commands = Any  # of conftest: a list of the commands given, which ran in this process


def _known(training: dict[str, Any]) -> Known:
    whole = {"model": "builtin:tiny", "data": {"train": "builtin:support"}, "method": "lora", "training": training}
    recipe = Recipe.model_validate(whole)
    return Known(recipe, steps=100, auto=0.1, tokens_per_step=500.0, held_out=False, origins=())


def _measured(speeds: dict[str, float | None], training: dict[str, Any], budget: str = "10s") -> Any:
    """What is made of so many tokens per second of each name; None is a run that failed."""
    given: list[Member] = []

    def bring(members: Sequence[Member]) -> list[Ended]:
        given.extend(members)
        return [Ended(member, Path("none"), _record(speeds[member.name])) for member in members]

    members = [Member(name, "lora", 1) for name in speeds]
    return measure(members, {name: _known(training) for name in speeds}, parse_budget(budget), bring), given


def _record(speed: float | None) -> RunRecord | None:
    facts = {"status": "completed", "method": "lora", "task": "t", "base": "b", "seed": 1}
    return None if speed is None else RunRecord(**facts, tokens_per_second=speed)  # type: ignore[arg-type]


def test_each_name_gets_the_steps_that_fit() -> None:
    (plans, timed, failed), given = _measured({"fast": 5000.0, "slow": 400.0, "dead": None}, {"max_steps": 100})
    assert {name: known.steps for name, known in plans.items()} == {"fast": 100, "slow": 8}
    assert [each.member.name for each in failed] == ["dead"]
    assert "slow: 8 steps" in timed[1].sentence()
    assert all(f"training.max_steps={MEASURED_STEPS}" in member.overrides for member in given)


def test_a_schedule_that_does_not_fit_the_steps_is_told() -> None:
    with pytest.raises(RecipeError, match="10s") as raised:
        _measured({"slow": 400.0}, {"max_steps": 100, "warmup_steps": 50})
    assert "the warm-up takes 50 steps, more than the 8 of the run" in raised.value.render()


@pytest.mark.slow
def test_a_rerun_takes_the_steps_of_the_first(tmp_path: Path, commands: Commands) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text("""
model: builtin:tiny
data: {train: {path: builtin:support, rows: 24}, validation: 6, max_length: 160}
method: {type: lora, r: 2}
training: {max_steps: 9, batch_size: 4}
evaluation: {samples: 0, every: null}
threads: 1
""")
    wanted: dict[str, Any] = {"methods": ["lora", "ia3"], "budget": "1.5s", "output": tmp_path / "out"}
    commands.stop_after = 3
    with pytest.raises(BaseException, match="stopped"):
        compare(recipe, **wanted)
    commands.stop_after = None
    found = compare(recipe, **wanted)
    assert commands.trained == [f"timing-steps-{MEASURED_STEPS}"] * 2 + ["lora-seed-42", "ia3-seed-42"]
    for line in found.document["members"]:
        record = load_record(tmp_path / "out" / line["run"])
        timing = found.document["timing"][line["name"]]
        assert record.steps == timing["steps"] == max(1, int(1.5 / timing["seconds_per_step"]))
    assert "1.5s of training each" in (tmp_path / "out" / "report.html").read_text()
    assert compare(recipe, **wanted).document == found.document
