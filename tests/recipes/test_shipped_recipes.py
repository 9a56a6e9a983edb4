"""Every recipe and starter that ships: valid, planned offline, as many as there should be, and trained where tiny."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from peftcli.adapters.registry import method_names
from peftcli.cli.starters import starter_names, write_starter
from peftcli.models.builtin import builtin_base
from peftcli.planning.cards import card_bytes
from peftcli.planning.plan import make_plan, unfit
from peftcli.recipe import load_recipe
from peftcli.run import train

RECIPES = Path(__file__).parents[2] / "recipes"
BASES = Path(__file__).parent / "bases"
FULL = ("smollm2-135m", "qwen3-0.6b", "llama-3.2-1b", "mistral-7b")
TOTALS = {
    "smollm2-135m": 134_515_008,
    "qwen3-0.6b": 596_049_920,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_248_023_552,
}
"""Parameters of the published bases."""


FOLDERS = {
    "llama-3.2-3b": (("dora", "ia3", "lora"), 3_212_749_824),
    "llama-3.1-8b": (("dora", "lora"), 8_030_261_248),
    "qwen3-4b": (("dora", "lora"), 4_022_468_096),
    "qwen3-8b": (("lora",), 8_190_735_360),
    "smollm3-3b": (("lora",), 3_075_098_624),
}
"""Folder of a model -> its recipes, and the parameters of the published base."""
CARD_BYTES = card_bytes("rtx-4090")
CARDS = {
    "llama-3.1-8b/nf4": ("rtx-3060", 8_030_261_248),
    "llama-2-13b/nf4": ("rtx-4090", 13_015_864_320),
    "llama-3.3-70b/nf4": ("h100", 70_553_706_496),
    "phi-4/nf4": ("rtx-4090", 14_659_507_200),
    "gemma-3-1b/lora": ("rtx-3060", 999_885_952),
    "gemma-3-4b/lora": ("rtx-4090", 4_300_079_472),
    "gemma-3-12b/nf4": ("rtx-4090", 12_187_325_040),
    "gpt-oss-20b/lora": ("h100", 20_914_757_184),
    "qwen3-30b-a3b/lora": ("h100", 30_532_122_624),
    "roberta-base/lora": ("rtx-3060", 124_647_170),
    "modernbert-base/lora": ("rtx-3060", 149_606_402),
    "flan-t5-base/lora": ("rtx-3060", 247_577_856),
}
"""Recipe -> the card that it names, and the parameters of the published base; of an encoder with a head of two labels."""
ROWS = {
    "sequence-classification": [{"text": "unabridged " * 700, "label": name} for name in ("no", "yes")],
    "seq2seq-lm": [{"source": "unabridged " * 700, "target": "abridged " * 100}],
}


OFTEN = ("lora", "prompt_tuning", "bottleneck")
"""Recipes that the default tests train to their end."""


def tiny_recipes() -> list[Path]:
    return sorted((RECIPES / "tiny").glob("*.yaml"))


def test_all_recipes_are_seen() -> None:
    assert [path.stem for path in RECIPES.glob("*.yaml")] == ["quickstart"]
    named = {f"{name}/lora" for name in FULL} | {f"{name}/{method}" for name in FOLDERS for method in FOLDERS[name][0]}
    shipped = {
        f"{path.parent.name}/{path.stem}"
        for path in RECIPES.glob("*/*.yaml")
        if path.parent.name not in ("tiny", "measured")
    }
    assert shipped == named | set(CARDS)
    assert {path.stem for path in tiny_recipes()} >= set(method_names())


@pytest.mark.parametrize("path", [*sorted(RECIPES.rglob("*.yaml"))], ids=lambda path: path.stem)
def test_every_recipe_is_valid(path: Path) -> None:
    assert load_recipe(path).recipe.method.name in method_names()


@pytest.mark.parametrize("name", FULL)
def test_full_recipes_are_planned_offline(name: str, tmp_path: Path) -> None:
    """With the published config.json, the built-in tokenizer and rows: exact parameter counts, no weights."""
    base = tmp_path / name
    shutil.copytree(BASES / name, base)
    for part in builtin_base("tiny").glob("tokenizer*"):
        shutil.copy(part, base)
    overrides = {"model.base": str(base), "data.train": "builtin:support", "device": "cpu"}
    path = RECIPES / name / "lora.yaml"
    if load_recipe(path).recipe.model.revision is not None:
        overrides["model.revision"] = None  # type: ignore[assignment]
    plan = make_plan(load_recipe(path, overrides))
    assert plan.total - plan.trainable == TOTALS[name]
    assert plan.trainable / plan.total < 0.05


@pytest.mark.parametrize("folder", FOLDERS)
def test_recipes_of_a_model_fit_their_card(folder: str, tmp_path: Path) -> None:
    """With the published config.json and rows as long as the recipe allows, offline and without weights."""
    methods, total = FOLDERS[folder]
    base = _base(folder, tmp_path)
    for method in methods:
        path = RECIPES / folder / f"{method}.yaml"
        overrides = {
            "model.base": str(base),
            "data.train": str(_long_rows(tmp_path)),
            "data.validation": 4,
            "data.truncation": "right",
        }
        plan = make_plan(load_recipe(path, overrides), device_memory=CARD_BYTES)
        assert int(plan.data["train"]["tokens"]) >= load_recipe(path).recipe.data.max_length
        assert plan.total - plan.trainable == total
        assert unfit(plan) is None
        assert plan.memory.peak_bytes <= CARD_BYTES


@pytest.mark.parametrize("folder", FOLDERS)
def test_methods_on_one_model_differ_in_their_method_alone(folder: str) -> None:
    plain = load_recipe(RECIPES / folder / "lora.yaml").recipe.model_dump(exclude={"method", "name"})
    for method in FOLDERS[folder][0]:
        assert load_recipe(RECIPES / folder / f"{method}.yaml").recipe.model_dump(exclude={"method", "name"}) == plain


FEW = ("llama-3.3-70b/nf4", "roberta-base/lora")


@pytest.mark.parametrize(
    "name", [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in CARDS if name not in FEW)]
)
def test_a_recipe_fits_the_card_that_it_names(name: str, tmp_path: Path) -> None:
    card, published = CARDS[name]
    path = RECIPES / f"{name}.yaml"
    recipe = load_recipe(path).recipe
    assert f"--device {card}" in path.read_text(encoding="utf-8")
    rows = _long_rows(tmp_path)
    if recipe.task in ROWS:
        rows.write_text("".join(f"{json.dumps(row)}\n" for row in 20 * ROWS[recipe.task]), encoding="utf-8")
    overrides = {
        "model.base": str(_base(name.split("/")[0], tmp_path)),
        "data.train": str(rows),
        "data.validation": 4,
        "data.truncation": "right",
        "data.checks.duplicates": "off",
    }
    plan = make_plan(load_recipe(path, overrides), device_memory=card_bytes(card))
    assert not [note for note in plan.chosen if "not known" in note]
    assert unfit(plan) is None
    assert plan.memory.peak_bytes <= card_bytes(card)
    # the head of a task is trained beside the update, and is none of the published base
    assert plan.total - plan.trainable == published


def _base(name: str, tmp_path: Path) -> Path:
    base = tmp_path / name
    shutil.copytree(BASES / name, base)
    for part in builtin_base("tiny").glob("tokenizer*"):
        shutil.copy(part, base)
    return base


def _long_rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    words = " ".join(["unabridged"] * 3000)
    row = {"messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": words}]}
    path.write_text(f"{json.dumps(row)}\n" * 8, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", FULL)
def test_every_value_of_a_full_recipe_has_its_reason(name: str) -> None:
    lines = (RECIPES / name / "lora.yaml").read_text(encoding="utf-8").splitlines()
    bare = [line for line in lines if ":" in line and "#" not in line and not line.rstrip().endswith(":")]
    assert [line for line in bare if line.strip() != "type: lora"] == []


@pytest.mark.parametrize("name", starter_names())
def test_starters_are_short_and_train_as_they_stand(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_starter(name, None)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 8
    assert lines[0].startswith("# yaml-language-server: $schema=")
    short = {"training.max_steps": 2, "evaluation.rows": 4, "evaluation.samples": 1, "threads": 1}
    if load_recipe(path).recipe.training.epochs is not None:
        short["training.epochs"] = None  # type: ignore[assignment]
    assert train(path, overrides=short).status == "completed"


@pytest.mark.parametrize(
    "path",
    # the others by `make reproduce` as well, which holds them to their locks
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in OFTEN else [pytest.mark.slow])
        for path in tiny_recipes()
    ],
)
def test_tiny_recipes_lower_the_loss_of_the_base(path: Path, tmp_path: Path) -> None:
    # one thread: another worker of the tests has the other core
    record = train(path, output=tmp_path / "run", overrides={"threads": 1})
    base, tuned = record.evaluation.base["eval_loss"], record.evaluation.tuned["eval_loss"]
    assert base is not None
    assert tuned is not None
    assert tuned < base, f"{path.stem}: {base} -> {tuned}"
