"""The locks that ship: one beside the quickstart and every tiny recipe, current, free of places, and kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from peftcli import files
from peftcli.adapters.registry import method_names
from peftcli.lock.differences import input_differences
from peftcli.lock.document import Lock
from peftcli.lock.lock_file import lock_path, read_lock
from peftcli.planning.plan import prepare_run
from peftcli.reproduce.job import reproduce
from peftcli.runs.locking import inputs_of, pinned_recipe

REPOSITORY = Path(__file__).parents[2]
RECIPES = [REPOSITORY / "recipes" / "quickstart.yaml", *sorted((REPOSITORY / "recipes" / "tiny").glob("*.yaml"))]

every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)


def lock_beside(recipe: Path) -> Lock:
    path = lock_path(recipe)
    assert path.is_file(), f"{recipe} has no lock beside it: make locks"
    return read_lock(path)


def test_every_tiny_recipe_is_seen() -> None:
    assert {path.stem for path in RECIPES} >= {"quickstart", *method_names()}


def test_no_lock_is_left_without_its_recipe() -> None:
    locks = (REPOSITORY / "recipes").rglob("*.lock")
    assert [path.name for path in locks if not path.with_suffix(".yaml").is_file()] == []


@every_recipe
def test_a_committed_lock_is_of_the_recipe_as_it_is(recipe: Path) -> None:
    """Recipe values, built-in base and rows, token stream. Versions are those of whoever runs the tests."""
    lock = lock_beside(recipe)
    found = inputs_of(prepare_run(pinned_recipe(recipe, (), lock)), recipe.parent)
    differing = [item.text for item in input_differences(lock, found, recipe.parent) if item.kind != "package"]
    assert differing == [], "make locks"
    assert lock.packages["peftcli"] == found.packages["peftcli"]
    assert lock.expected is not None
    trace = lock.expected.runs[0]
    assert trace.steps == found.value("training.max_steps")
    assert None not in (*trace.loss, *trace.grad_norm)
    assert trace.adapter_sha256 is not None
    assert "eval_loss" in lock.expected.tuned


@every_recipe
def test_a_committed_lock_names_no_place_outside_of_its_folder(recipe: Path) -> None:
    lock_beside(recipe)
    text = lock_path(recipe).read_text(encoding="utf-8")
    assert [mark for mark in ('"/', '"~/', '"../', str(REPOSITORY)) if mark in text] == []


@pytest.mark.slow
def test_the_first_steps_of_the_quickstart_are_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_beside(RECIPES[0])
    monkeypatch.chdir(tmp_path)
    found = reproduce(RECIPES[0], steps=20)
    assert found.held
    assert found.seconds < 60


@pytest.mark.slow
@every_recipe
def test_a_committed_lock_is_kept_elsewhere_three_times_in_a_row(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_beside(recipe)
    shutil.copytree(REPOSITORY / "recipes", tmp_path / "clone" / "recipes")
    monkeypatch.chdir(tmp_path / "clone")
    before = files.sha256_file(lock_path(recipe))
    for _ in range(3):
        found = reproduce(recipe.relative_to(REPOSITORY))
        (seed,) = found.seeds
        assert found.held, found.to_dict()
        assert found.level == "bytes" or seed.wanted != "bytes"
    assert files.sha256_file(lock_path(recipe)) == before
    assert not Path("runs").exists()
