"""What `peft methods` quotes is what the comparisons in recipes/measured found."""

from __future__ import annotations

import json
from pathlib import Path

from peftcli.adapters.measured import MEASURED_PATH, measured, measured_line, measured_of
from peftcli.recipe import load_recipe
from peftcli.recipe.telling_methods import method_text, methods_text

RECIPES = Path(__file__).parents[2] / "recipes"


def test_what_is_quoted_is_what_was_found() -> None:
    kept = [json.loads(path.read_text()) for path in sorted((RECIPES / "measured").glob("*.json"))]
    assert kept
    assert json.loads(MEASURED_PATH.read_text()) == kept == list(measured())


def test_each_comparison_says_where_it_was_made_and_its_recipes_are_there() -> None:
    for comparison in measured():
        recipe = load_recipe(RECIPES.parent / comparison["recipe"]).recipe
        assert comparison["base"] == recipe.model.base
        assert comparison["budget"] == f"{recipe.training.max_steps} steps"
        recommended = load_recipe(RECIPES.parent / comparison["recipe"].replace(".yaml", ".recommended.yaml")).recipe
        assert recommended.method.name == comparison["recommended"]
        values = [method["value"] for method in comparison["methods"]]
        assert values == sorted(values)
        assert comparison["recommended"] == comparison["methods"][0]["name"]
        assert values[-1] < comparison["untouched"]


def test_methods_are_told_with_base_data_budget_and_date() -> None:
    comparison = measured()[0]
    line = measured_line(comparison)
    for fact in ("base", "data", "budget", "date"):
        assert comparison[fact] in line
    best = comparison["methods"][0]
    assert f"{best['name']} {best['value']:.3g}" in line
    assert line.split(":")[0] in " ".join(methods_text().split())
    assert f"1 of {len(comparison['methods'])}" in measured_of(best["name"])[0]
    assert "measured: " in method_text(best["name"])
    assert measured_of("prefix_tuning") == []
