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
        (["lora", ""], [], "names nothing"),
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


def test_lists_and_sections_are_values_too() -> None:
    assert parse_vary(["method.target_modules=[q_proj, v_proj],all-linear"]) == {
        "method.target_modules": ["[q_proj, v_proj]", "all-linear"]
    }
    found = parse_vary(["training.scheduler={type: wsd, decay_ratio: 0.3},linear", "data.path='a,b',it's,c"])
    assert list(found.values()) == [["{type: wsd, decay_ratio: 0.3}", "linear"], ["'a,b'", "it's", "c"]]


def test_names_are_folders_of_their_own(tmp_path: Path) -> None:
    recipe = loaded(tmp_path)

    def names(*vary: str) -> list[str]:
        return [member.name for member in build_members(recipe, [], parse_vary(vary), 1)]

    assert names("model.base=a:b,a/b,A?b") == ["lora-base-a-b", "lora-base-a-b-2", "lora-base-A-b-3"]
    assert names("data.train.rows=8,9", "evaluation.rows=2") == [
        "lora-data.train.rows-8-evaluation.rows-2", "lora-data.train.rows-9-evaluation.rows-2",
    ]  # fmt: skip
    assert max(map(len, names(f"method.target_modules={'x' * 300},{'x' * 299}y"))) <= 82


def test_a_recipe_of_a_short_name_is_none_of_its_method(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: builtin:tiny\ndata: builtin:support\nmethod: {type: dora, r: 4}\ntraining: {learning_rate: 0.1}\n"
    )
    members = build_members(load_recipe(path), ["lora", "dora"], {}, 1)
    plain, own = (load_recipe(path, member.overrides).recipe for member in members)
    assert (plain.method.use_dora, plain.training.learning_rate) == (False, "auto")
    assert (own.method.use_dora, own.method.r, own.training.learning_rate) == (True, 4, 0.1)


@pytest.mark.parametrize(
    ("text", "steps"),
    [("200steps", 200), ("1step", 1), ("1.5ksteps", 1500), ("1Mtokens", 2000), (" 20 steps ", 20)],
)
def test_budgets(text: str, steps: int) -> None:
    assert parse_budget(text).steps(tokens_per_step=500.0) == steps


@pytest.mark.parametrize("text", ["10tokens", "0.5steps"])
def test_less_than_a_step_is_no_budget(text: str) -> None:
    with pytest.raises(RecipeError, match="less than one step"):
        parse_budget(text).steps(tokens_per_step=500.0)


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
