"""Which runs a comparison is made of, and how long they train."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftcli.compare.budget import parse_budget
from peftcli.compare.members import build_members, parse_vary
from peftcli.errors import RecipeError
from peftcli.recipe import LoadedRecipe, load_recipe


def loaded(folder: Path) -> LoadedRecipe:
    path = folder / "r.yaml"
    path.write_text("model: builtin:tiny\ndata: builtin:support\nmethod: {type: lora, r: 8}\nseed: 7\n")
    return load_recipe(path)


def test_every_method_with_every_setting_under_every_seed(tmp_path: Path) -> None:
    members = build_members(loaded(tmp_path), ["lora", "ia3"], parse_vary(["data.max_length=64,128"]), seeds=2)
    assert [(member.name, member.seed) for member in members] == [
        (f"{method}-max_length-{length}", seed) for method in ("lora", "ia3") for length in (64, 128) for seed in (7, 8)
    ]
    assert members[0].overrides == ("seeds=1", "seed=7", "data.max_length=64")
    assert "method={type: ia3}" in members[-1].overrides, "another method has its own fields"
    assert "training.learning_rate=auto" in members[-1].overrides, "and its own rate"
    assert len({member.folder for member in members}) == len(members)
    for member in members:
        recipe = load_recipe(tmp_path / "r.yaml", member.overrides).recipe
        assert (recipe.method.name, recipe.seed, recipe.seeds) == (member.method, member.seed, 1)


@pytest.mark.parametrize(
    ("methods", "vary", "said"),
    [
        (["lora"], [], "there is one thing to compare"),
        (["lora", "lora"], [], "names a method twice"),
        ([], ["method.r"], "no list of values"),
        ([], ["method.r=4,4"], "twice"),
        ([], ["method.r=4,8", "method.r=2,3"], "twice"),
        ([], ["seed=1,2"], "is not varied"),
        ([], ["method=lora,ia3"], "is not varied"),
    ],
)
def test_what_is_no_comparison(tmp_path: Path, methods: list[str], vary: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build_members(loaded(tmp_path), methods, parse_vary(vary), 1)


@pytest.mark.parametrize(
    ("text", "steps"),
    [("200steps", 200), ("1step", 1), ("1.5ksteps", 1500), ("1Mtokens", 2000), ("10tokens", 1), (" 20 steps ", 20)],
)
def test_budgets(text: str, steps: int) -> None:
    assert parse_budget(text).steps(tokens_per_step=500.0) == steps


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("10min", 600.0), ("1.5h", 5400.0)])
def test_budgets_in_time(text: str, seconds: float) -> None:
    found = parse_budget(text)
    assert (found.unit, found.amount) == ("seconds", seconds)


@pytest.mark.parametrize(
    "text", ["", "200", "steps", "-3steps", "0steps", "0min", "10 minutes", "1e3steps", "5 epochs"]
)
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_budget(text)
