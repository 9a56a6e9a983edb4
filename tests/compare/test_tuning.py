"""`--tune`: which rate is chosen, on which rows, and that nothing is trained twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.compare import trials
from peftcli.compare.job import compare
from peftcli.compare.members import Member
from peftcli.compare.session import Ended
from peftcli.compare.tuning import tune
from peftcli.errors import DataError, Interrupted, RecipeError
from peftcli.recipe import Recipe, load_recipe
from peftcli.runs.row_scores import read_row_scores

Commands = Any  # of conftest: a list of the commands given, which ran in this process

RECIPE = """
model: builtin:tiny
data: {train: {path: builtin:support, rows: 40}, validation: 20, max_length: 160}
method: {type: lora, r: 2}
training: {max_steps: 9, batch_size: 4}
evaluation: {samples: 0, every: 2}
threads: 1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def _found(method: str, losses: Any, *, candidates: int = 9, whole: int = 90) -> tuple[Any, list[Member]]:
    """Tuning whose trials score `losses(settings, steps)`; and the trials."""
    recipe = Recipe.model_validate({"model": "builtin:tiny", "data": {"train": "builtin:support"}, "method": method})
    trained: list[Member] = []

    def bring(members: Sequence[Member]) -> list[Ended]:
        trained.extend(members)
        return [Ended(member, Path("x"), None) for member in members]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peftcli.compare.tuning.score_of", lambda ended, rows: losses(dict(_settings(ended.member))))
        found = tune(
            Member("m", method, 1), recipe, auto=0.01, whole=whole, candidates=candidates, rows=np.arange(3),
            bring=bring,
        )  # fmt: skip
    return found, trained


def _settings(member: Member) -> Any:
    return ((key, json.loads(value)) for key, _, value in (text.partition("=") for text in member.overrides)
            if key in ("training.learning_rate", "training.max_steps") or key.startswith("method."))  # fmt: skip


def test_the_lowest_loss_of_the_last_rung_is_chosen_and_the_cost_told() -> None:
    found, trained = _found("lora", lambda given: abs(np.log2(given["training.learning_rate"] / 0.04)))
    assert found.chosen.rate == 0.04
    assert len(trained) == 12
    assert found.steps == 9 * 10 + 3 * 30
    assert "12 trials, as many steps as 2 members" in found.sentence()
    assert found.edge is None


def test_a_rate_that_is_best_for_few_steps_only_loses_in_the_longer_rung() -> None:
    def losses(given: dict[str, float]) -> float:
        best = 0.04 if given["training.max_steps"] == 10 else 0.02
        return abs(np.log2(given["training.learning_rate"] / best))

    assert _found("lora", losses)[0].chosen.rate == 0.02


def test_the_edge_of_the_grid_is_told_and_trials_that_fail_never_win() -> None:
    found, _ = _found("lora", lambda given: -given["training.learning_rate"])
    assert found.edge == "highest"
    assert "a better one may lie beyond" in found.sentence()
    found, _ = _found("lora", lambda given: None if given["training.learning_rate"] > 0.05 else 1.0)
    assert found.chosen.rate <= 0.05
    found, _ = _found("lora", lambda given: None)
    assert found.chosen is None


def test_what_a_method_declares_as_tunable_is_tried_at_the_chosen_rate() -> None:
    def losses(given: dict[str, float]) -> float:
        return abs(np.log2(given["training.learning_rate"] / 0.02)) + given.get("method.d_initial", 0.1)

    found, trained = _found("vera", losses)
    assert found.chosen.rate == 0.02
    assert dict(found.chosen.fields) == {"d_initial": pytest.approx(0.01)}
    assert len(trained) == 14
    assert "method.d_initial=0.01" in found.chosen.overrides


def test_a_trial_lays_the_schedule_over_its_own_steps() -> None:
    found = load_recipe_training("{warmup_steps: 30, max_steps: 90}")
    assert trials.short_schedule(10, found, 90) == ["training.max_steps=10", "training.warmup_steps=3"]
    assert trials.short_schedule(10, load_recipe_training("{max_steps: 90}"), 90) == ["training.max_steps=10"]


def load_recipe_training(text: str) -> Any:
    import yaml

    section = yaml.safe_load(text)
    whole = {"model": "builtin:tiny", "data": {"train": "builtin:support"}, "method": "lora", "training": section}
    return Recipe.model_validate(whole).training


@pytest.mark.slow
def test_members_train_at_the_rate_that_rows_of_their_own_chose(
    recipe: Path, tmp_path: Path, commands: Commands
) -> None:
    folder = tmp_path / "out"
    wanted: dict[str, Any] = {"methods": ["lora", "ia3"], "candidates": 2, "output": folder}
    commands.stop_after = 3
    with pytest.raises(Interrupted):
        compare(recipe, **wanted)
    commands.stop_after = None
    found = compare(recipe, **wanted)
    runs = [command[command.index("--output") + 1] for command in commands]
    assert len(runs) == len(set(runs)) == 2 * 2 + 2
    tuning = json.loads((folder / "compare.json").read_text())["tuning"]
    assert set(tuning) == {"lora", "ia3"}
    for line in found.document["members"]:
        chosen = tuning[line["name"]]
        assert line["learning_rate"] == chosen["chosen"]["learning_rate"]
        best = min(chosen["trials"], key=lambda trial: trial["loss"])
        assert best["learning_rate"] == line["learning_rate"]
    _tuning_and_score_share_no_row(folder, found)
    assert load_recipe(folder / "recommended.yaml").recipe.training.learning_rate == next(
        line["learning_rate"] for line in found.document["members"] if line["name"] == found.document["recommended"]
    )
    assert not list((folder / "trials").rglob("*.safetensors.tmp"))
    assert not list((folder / "trials").rglob("adapter")), "what tuning leaves is small"
    page = (folder / "report.html").read_text()
    assert "Tuned by the loss" in page
    trained = len(commands)
    assert compare(recipe, **wanted).document == found.document
    assert len(commands) == trained, "nothing was trained twice"


def _tuning_and_score_share_no_row(folder: Path, found: Any) -> None:
    """By arithmetic on the numbers of the rows: the score of both parts together is that of all rows."""
    line = found.document["members"][0]
    table = read_row_scores(folder / line["run"], "tuned")["eval_loss"]
    final = found.variants[0].members[0].final
    assert line["evaluation"]["tuned"]["eval_loss"] == pytest.approx(table.take(final).value())
    trial = found.document["tuning"][line["name"]]["trials"][0]
    run = next((folder / "trials" / line["name"]).glob(f"rate-{trial['learning_rate']:g}-*"))
    numbers = read_row_scores(run, "tuned")["eval_loss"].numbers
    left = np.setdiff1d(np.arange(len(numbers)), final)
    assert trial["loss"] == pytest.approx(numbers[left, 0].sum() / numbers[left, 1].sum()), (
        "only rows that score nobody"
    )
    assert 0 < len(left) < len(numbers)


def test_what_cannot_be_tuned_is_told_before_any_training(recipe: Path, tmp_path: Path, commands: Commands) -> None:
    wanted: dict[str, Any] = {"methods": ["lora", "ia3"], "candidates": 3, "output": tmp_path / "out"}
    with pytest.raises(RecipeError, match="both choose the rate"):
        compare(recipe, vary=["training.learning_rate=1e-3,1e-2"], **wanted)
    with pytest.raises(DataError, match="too few"):
        compare(recipe, overrides=["data.validation=4"], **wanted)
    with pytest.raises(RecipeError, match="finds its own step size"):
        compare(recipe, overrides=["training.optimizer=prodigy"], **wanted)
    assert not commands
    assert not (tmp_path / "out").exists()
