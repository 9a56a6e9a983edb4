"""Where a run lies, and what is written there before it trains."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from peftcli.errors import CheckpointError
from peftcli.planning.plan import prepare_run
from peftcli.recipe import load_recipe
from peftcli.recipe.schema import Recipe
from peftcli.runs.folder import choose_output, existing_run, keep_batch, resolved_values, write_recipe

RECIPE = "model: builtin:tiny\ndata: builtin:support\nmethod: lora\ntraining: {max_steps: 2}\n"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path / "mine.yaml"


def test_the_next_free_number(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe, ())
    assert choose_output(loaded, None) == tmp_path / "runs" / "mine-001"
    (tmp_path / "runs" / "mine-001").mkdir(parents=True)
    (tmp_path / "runs" / "mine-002").write_text("a file in its place")
    assert choose_output(loaded, None) == tmp_path / "runs" / "mine-003"


def test_what_was_asked_for_comes_first(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe, ["output=kept"])
    assert choose_output(loaded, None) == tmp_path / "kept"
    assert choose_output(loaded, "elsewhere") == tmp_path / "elsewhere"


def test_a_recipe_alone_is_no_run(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "recipe.yaml").write_text(RECIPE)
    for name in ("folder", "nothing"):
        with pytest.raises(CheckpointError, match="no run to resume"):
            existing_run(tmp_path / name)


def test_the_recipe_of_a_run_resolves_to_itself(recipe: Path, tmp_path: Path) -> None:
    """Every `auto` has its value, so that the run repeats wherever its folder goes."""
    loaded = load_recipe(recipe, ())
    resolved = prepare_run(loaded).plan.resolved
    write_recipe(tmp_path, loaded, resolved)
    again = load_recipe(tmp_path / "recipe.yaml", ()).recipe
    document = again.model_dump(mode="json")
    for key, value in resolved_values(resolved).items():
        section: object = document
        for part in key.split("."):
            assert isinstance(section, dict)
            section = section[part]
        assert section == value, key
    assert isinstance(again, Recipe)
    assert "auto" not in (again.device, again.model.dtype, again.training.learning_rate)


def test_a_batch_that_broke_is_kept_row_by_row(tmp_path: Path) -> None:
    row = SimpleNamespace(origin=SimpleNamespace(file="rows.jsonl", line=7), input_ids=[1, 2], weights=[0.0, 1.0])
    name = keep_batch(tmp_path, 3, [11], [row])
    (line,) = (tmp_path / name).read_text().splitlines()
    wanted = {"step": 3, "row": 11, "file": "rows.jsonl", "line": 7, "input_ids": [1, 2], "weights": [0.0, 1.0]}
    assert json.loads(line) == wanted
