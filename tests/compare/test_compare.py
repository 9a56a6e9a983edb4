"""`peft compare` from the recipe to the recommended one: nothing is trained twice, whatever stops it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from peftcli.compare.job import compare
from peftcli.errors import DataError, Interrupted, PeftcliError, RecipeError, StorageError
from peftcli.recipe import load_recipe
from peftcli.runs.row_scores import read_row_scores

Commands = Any  # of conftest: a list of the commands given, which ran in this process

RECIPE = """
model: builtin:tiny
data: {train: {path: builtin:support, rows: 24}, validation: 6, max_length: 160}
method: {type: lora, r: 2}
training: {max_steps: 9, batch_size: 4, learning_rate: 2e-3}
evaluation: {samples: 0, every: 2}
threads: 1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def test_files_and_figures_are_those_of_the_runs(recipe: Path, tmp_path: Path, commands: Commands) -> None:
    folder = tmp_path / "out"
    found = compare(recipe, methods=["lora", "ia3"], seeds=2, budget="3steps", output=folder)
    assert len(commands) == 4
    document = json.loads((folder / "compare.json").read_text())
    assert document == json.loads(json.dumps(found.document))
    for line in document["members"]:
        record = json.loads((folder / line["run"] / "run.json").read_text())
        assert (line["steps"], line["seed"]) == (3, record["seed"])
        assert line["trainable"] == record["parameters"]["trainable"]
        assert line["evaluation"]["tuned"] == record["evaluation"]["tuned"]
        rows = read_row_scores(folder / line["run"], "tuned")["eval_loss"]
        assert rows.value() == pytest.approx(record["evaluation"]["tuned"]["eval_loss"], rel=1e-6)
    means = {
        name: sum(line["evaluation"]["tuned"]["eval_loss"] for line in document["members"] if line["name"] == name) / 2
        for name in ("lora", "ia3")
    }
    assert document["recommended"] == min(means, key=lambda name: means[name])
    assert len(list(csv.DictReader((folder / "compare.csv").open()))) == 4
    recommended = load_recipe(folder / "recommended.yaml").recipe
    assert recommended.method.name == document["recommended"]
    assert recommended.training.max_steps == 3
    page = (folder / "report.html").read_text()
    assert "Recommended" in page
    assert page.count('class="ring"') >= 3

    compare(recipe, methods=["lora", "ia3"], seeds=2, budget="3steps", output=folder)
    assert len(commands) == 4, "nothing was trained twice"
    with pytest.raises(StorageError, match="another request"):
        compare(recipe, methods=["lora", "bitfit"], seeds=2, budget="3steps", output=folder)


def test_it_goes_on_where_it_was_stopped(recipe: Path, tmp_path: Path, commands: Commands) -> None:
    commands.stop_after = 1
    folder = tmp_path / "out"
    wanted = {"methods": ["lora", "ia3", "bitfit"], "budget": "2steps", "output": folder}
    with pytest.raises(Interrupted):
        compare(recipe, **wanted)  # type: ignore[arg-type]
    assert json.loads((folder / "compare.json").read_text())["recommended"] is None
    commands.stop_after = None
    held = (folder / "compare.json").read_text()
    (folder / "compare.json").write_text(held.replace('"rows": {', '"rows": {"other": "rows", ', 1))
    with pytest.raises(DataError, match="no longer those that this comparison began with"):
        compare(recipe, **wanted)  # type: ignore[arg-type]
    (folder / "compare.json").write_text(held)
    compare(recipe, **wanted)  # type: ignore[arg-type]
    assert commands.trained == ["lora-seed-42", "ia3-seed-42", "bitfit-seed-42"]


@pytest.mark.parametrize(("code", "why"), [(1, "exit code 1"), (-9, "killed by signal 9")])
def test_a_member_that_fails_is_told_and_the_others_compared(
    recipe: Path, tmp_path: Path, commands: Commands, code: int, why: str
) -> None:
    commands.codes = lambda arguments: code if "ia3" in str(arguments) else None
    found = compare(recipe, methods=["lora", "ia3"], budget="2steps", output=tmp_path / "out")
    assert [variant.name for variant in found.variants] == ["lora"]
    failed = next(line for line in found.document["members"] if line["name"] == "ia3")
    assert failed["evaluation"] is None
    assert why in failed["failure"]
    assert "ia3-seed-42 failed" in (tmp_path / "out" / "report.html").read_text()


def test_a_member_that_cannot_run_is_known_before_any_training(
    recipe: Path, tmp_path: Path, commands: Commands
) -> None:
    with pytest.raises(PeftcliError) as raised:
        compare(recipe, vary=["method.r=2,4", "data.max_length=160,7"], output=tmp_path / "out")
    assert "max_length-7" in str(raised.value.render())
    with pytest.raises(RecipeError, match="nope"):
        compare(recipe, methods=["lora", "nope"], output=tmp_path / "out")
    assert not commands
    assert not (tmp_path / "out").exists()
