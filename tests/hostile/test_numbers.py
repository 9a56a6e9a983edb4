"""Numbers at the ends of what there is, for every key of a recipe: refused by name, or planned and trained as they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_case import GOOD, Scene, meet

from peftcli.data.mixing import epoch_counts
from peftcli.errors import DataError, PeftcliError, RecipeError
from peftcli.recipe import flat_recipe, load_recipe

EXTREMES = ("1e308", "1e-308", "-0.0", "0", "-1", "1000000000000000000", ".nan", ".inf", "9" * 400)
METHODS = (
    "lora",
    "{type: adalora, init_r: 4, target_r: 2}",
    "ia3",
    "{type: prompt_tuning, num_virtual_tokens: 4}",
    "oft",
)


@pytest.mark.parametrize("method", METHODS)
def test_every_key_is_refused_by_name_or_taken(method: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    text = GOOD.replace("{type: lora, r: 2, target_modules: [q_proj, v_proj]}", method)
    path.write_text(text, encoding="utf-8")
    keys = sorted(flat_recipe(load_recipe(path, ()).recipe))
    assert len(keys) > 60
    refusals = []
    taken = 0
    for key in keys:
        for value in EXTREMES:
            try:
                load_recipe(path, [f"{key}={value}"])
                taken += 1
            except PeftcliError as error:
                refusals.append((key, value, error))
    assert [found for found in refusals if found[2].exit_code != 2] == []
    assert [found for found in refusals if found[0].split(".")[-1] not in str(found[2])] == []
    assert taken > 20


TRAINED = [
    ("training.epochs", "1e308", 2, "training.epochs"),
    ("training.epochs", "1000000000000000000", 2, "training.epochs"),
    ("training.max_steps", "1000000000000000000", 2, "training.max_steps"),
    ("training.epochs", "1e-308", 0, "It learned"),
    ("data.train.repeat", "1000000000", 3, "repeat"),
    ("data.train.repeat", "1000000000000000000", 3, "repeat"),
    ("data.max_length", "1000000000000000000", 0, ""),
    ("data.validation", "1000000000000000000", 3, "data.validation"),
    ("generation.temperature", "1e-300", 2, "generation.temperature"),
    ("generation.temperature", "1e300", 2, "generation.temperature"),
    ("method.lora_alpha", "1e308", 8, "nan"),
    ("training.learning_rate", "1e308", 8, "not finite"),
    ("training.learning_rate", "1e-308", 8, "no gradient"),
    ("training.max_grad_norm", "1e-308", 2, "leaves nothing of any gradient"),
    ("training.batch_size", "1000000000000000000", 0, ""),
]


@pytest.mark.parametrize(("key", "value", "code", "says"), TRAINED, ids=lambda part: str(part)[:20])
def test_a_number_is_trained_or_told(key: str, value: str, code: int, says: str, tmp_path: Path, trained: Path) -> None:
    scene = Scene(tmp_path, trained)
    text = GOOD.replace("training: {max_steps: 2, ", "training: {") if key == "training.epochs" else GOOD
    scene.write("r.yaml", text)
    found = meet(f"train r.yaml --output new --quiet --set {key}={value}", scene.folder)
    assert found.code == code, found.text
    assert says in found.text
    assert "Traceback" not in found.text
    assert found.events == []
    assert found.cpu_seconds < 6


@pytest.mark.parametrize("scale", [5e-324, 1e-308, 1e-150, 1.0, 1e150, 1.7e308 / 3])
def test_only_the_relation_of_weights_counts(scale: float) -> None:
    """By hand: of 2,650 rows, weights of 1 to 3 take 662.5 and 1987.5, the first of equal remainders rounded up."""
    counts = epoch_counts([1325, 1325], [scale, 3 * scale], [1, 1])
    assert counts == [663, 1987]


def test_two_of_the_largest_weights_share_all_rows() -> None:
    assert epoch_counts([2000, 650], [1.7e308, 1.7e308], [1, 1]) == [1325, 1325]


def test_weights_give_every_row_away() -> None:
    draw = np.random.default_rng(1)
    for _ in range(200):
        weights = [float(value) for value in 10.0 ** draw.uniform(-300, 300, size=draw.integers(1, 6))]
        assert sum(epoch_counts([100] * len(weights), weights, [1] * len(weights))) == 100 * len(weights)


def test_repetition_beyond_all_order_is_refused() -> None:
    with pytest.raises(DataError, match="repeat"):
        epoch_counts([12], [None], [10**9])


def test_a_source_that_gives_no_row_is_told(tmp_path: Path, trained: Path) -> None:
    scene = Scene(tmp_path, trained)
    sources: Any = "[{path: builtin:support, rows: 20, weight: 1.7e308}, {path: builtin:chat, rows: 20, weight: 1e-3}]"
    scene.write("r.yaml", GOOD.replace("{path: builtin:support, rows: 12}", sources))
    found = meet("plan r.yaml", scene.folder)
    assert found.code == 3, found.text
    assert "no row of builtin:chat" in found.text


def test_the_largest_integer_of_a_recipe_is_a_recipe_error(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(GOOD + f"seed: {'9' * 5000}\n", encoding="utf-8")
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "r.yaml", ())
