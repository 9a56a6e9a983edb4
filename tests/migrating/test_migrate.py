"""`peft migrate`: files as the tools' own examples look become recipes that load, and no key goes without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftcli.cli.entry import run as peft
from peftcli.errors import RecipeError, StorageError
from peftcli.migrating.draft import Draft
from peftcli.migrating.migration import migrate, migration_text
from peftcli.recipe import load_recipe
from peftcli.recipe.resolved import flat_recipe

FILES = Path(__file__).parent / "files"
EXPECTED: dict[str, dict[str, Any]] = {
    "axolotl.yaml": {
        "model.base": "NousResearch/Llama-3.2-1B", "model.quantization": "nf4", "data.validation": 0.1,
        "data.max_length": 2048, "data.packing": True, "data.train_on": "completions", "method.r": 32,
        "method.lora_alpha": 16, "training.batch_size": 8, "training.micro_batch_size": 2, "training.epochs": 1.0,
        "training.learning_rate": 2e-4, "training.warmup_ratio": 0.1, "training.optimizer.type": "adamw_8bit",
        "checkpoint.best": None,
    },
    "llama_factory.yaml": {
        "model.base": "Qwen/Qwen3-4B-Instruct-2507", "task": "causal-lm", "data.max_length": 2048, "method.r": 8,
        "method.lora_alpha": 16, "method.target_modules": "all-linear", "training.batch_size": 8,
        "training.learning_rate": 1e-4, "training.scheduler.type": "cosine", "training.warmup_ratio": 0.1,
        "training.precision": "bf16", "evaluation.every": 500, "checkpoint.every": 500, "data.validation": 0.1,
    },
    "trl.yaml": {
        "data.train": "trl-lib/Capybara", "data.packing": True, "data.max_length": 1024, "method.r": 32,
        "method.lora_alpha": 16, "method.lora_dropout": 0.05, "training.batch_size": 16,
        "training.scheduler.type": "linear", "training.warmup_steps": 0, "training.gradient_checkpointing": True,
    },
    "trainer/training_args.json": {
        "model.base": "Qwen/Qwen2-0.5B", "method.r": 64, "method.use_rslora": True, "training.batch_size": 8,
        "training.scheduler.type": "constant", "training.warmup_steps": 50, "training.optimizer.betas": [0.9, 0.95],
        "training.weight_decay": 0.01, "checkpoint.best": "eval_loss", "tracking": ["wandb"], "seed": 7,
    },
    "adapter_config.json": {"model.base": "Qwen/Qwen2-0.5B", "method.r": 64, "method.lora_alpha": 128,
                            "method.target_modules": ["q_proj", "v_proj"], "method.use_rslora": True},
    "torchtune.yaml": {
        "model.base": "models/Llama-3.2-1B-Instruct", "data.train": "yahma/alpaca-cleaned", "data.train_on": "all",
        "data.format": "instruction", "method.r": 64, "training.batch_size": 32, "training.max_grad_norm": None,
        "method.target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "training.warmup_steps": 100, "training.learning_rate": 3e-4, "training.precision": "bf16",
    },
    "litgpt.yaml": {
        "model.base": "meta-llama/Llama-3.2-1B", "data.train": "mhenrichsen/alpaca_2k_test", "data.train_on": "all",
        "method.target_modules": ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"], "method.r": 32,
        "training.batch_size": 8, "training.micro_batch_size": 4, "training.scheduler.min_ratio": pytest.approx(0.3),
        "training.warmup_steps": 10, "training.optimizer.betas": [0.9, 0.95], "training.max_grad_norm": None,
    },
    "swift.json": {
        "model.base": "Qwen/Qwen2.5-7B-Instruct", "model.dtype": "bfloat16", "method.r": 8, "method.lora_alpha": 32,
        "method.lora_dropout": 0.05, "training.weight_decay": 0.1, "training.batch_size": 16,
        "training.warmup_ratio": 0.05, "training.scheduler.type": "cosine",
    },
    "mlx.yaml": {
        "data.train": "data/hellaswag/train.jsonl", "data.validation": "data/hellaswag/valid.jsonl",
        "data.train_on": "all", "method.r": 8, "method.lora_alpha": 160.0, "training.max_steps": 600,
        "training.learning_rate": 1e-5, "training.scheduler.type": "cosine", "training.warmup_steps": 100,
        "training.max_grad_norm": None, "seed": 0,
    },
}  # fmt: skip
"""File -> what its recipe says, by hand from the tool's documentation."""


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_becomes_a_recipe_that_loads_and_says_the_same(name: str, tmp_path: Path) -> None:
    migrate(FILES / name, tmp_path / "recipe.yaml")
    found = flat_recipe(load_recipe(tmp_path / "recipe.yaml").recipe)
    for key, value in EXPECTED[name].items():
        shown = found[key]
        if isinstance(value, str) and key.startswith(("data.train", "data.validation", "model.base")):
            assert str(shown).endswith(value), key
            continue
        assert (list(shown) if isinstance(shown, tuple) else shown) == value, key


def leaves(document: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for key, value in document.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{prefix}{key}.")
        elif value not in (None, ""):
            found.add(f"{prefix}{key}")
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_every_key_is_told_once(name: str) -> None:
    found = migrate(FILES / name)
    told = [fate.theirs for fate in found.fates if fate.theirs is not None and ": " not in fate.theirs]
    for leaf in leaves(yaml.safe_load((FILES / name).read_text())):
        covering = [one for one in told if leaf == one or leaf.startswith(f"{one}.")]
        # a section's remark stands for what is left of it
        assert [one for one in covering if one == leaf] or covering, leaf
        assert len([one for one in covering if one == leaf]) <= 1, leaf
    shown = migration_text(found)
    assert all(fate.remark in shown for fate in found.fates if fate.remark)


def test_what_a_tool_does_unasked_is_written_out(tmp_path: Path) -> None:
    """The same words mean the same training: defaults that differ are not lost by silence."""
    bare = tmp_path / "args.json"
    bare.write_text(json.dumps({"per_device_train_batch_size": 8}))
    recipe = flat_recipe(_recipe(bare, tmp_path))
    assert (recipe["training.learning_rate"], recipe["training.scheduler.type"]) == (5e-5, "linear")
    assert (recipe["training.warmup_steps"], recipe["training.batch_size"], recipe["training.epochs"]) == (0, 8, 3.0)
    mlx = tmp_path / "mlx.yaml"
    mlx.write_text("model: a/b\ndata: d\nfine_tune_type: lora\n")
    recipe = flat_recipe(_recipe(mlx, tmp_path, "two.yaml"))
    assert (recipe["training.scheduler.type"], recipe["training.max_steps"], recipe["method.lora_alpha"]) == (
        "constant",
        1000,
        160.0,
    )
    assert any("the last 16 layers" in one for one in migrate(mlx).to_do)


def _recipe(path: Path, folder: Path, name: str = "one.yaml") -> Any:
    migrate(path, folder / name)
    return load_recipe(folder / name).recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello: world\n", "no tool that is known here"),
        ("model: builtin:tiny\ndata: builtin:support\nmethod: lora\n", "this is a recipe already"),
        ("- 1\n- 2\n", "section of `key: value` lines"),
        ("", "it is empty"),
        ("a: [1\n", "not YAML"),
        ("base_model: a/b\nadapter: lora\nlora_r: -3\nlearning_rate: much\n", "no recipe can have"),
    ],
)
def test_what_is_no_such_file(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "given.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        migrate(path, tmp_path / "out.yaml")
    assert peft(["migrate", str(path)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "out.yaml").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("precious")
    with pytest.raises(StorageError, match="already exists"):
        migrate(FILES / "trl.yaml", tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == "precious"
    with pytest.raises(RecipeError, match="no such file"):
        migrate(tmp_path / "nowhere.yaml")


def test_a_key_is_taken_once() -> None:
    draft = Draft({"a": {"b": 1, "c": 2}, "d": None})
    draft.put("a.b", "seed", 1)
    draft.drop("a.b", "again")
    draft.drop("a", "the rest")
    draft.drop("d", "nothing there")
    draft.finish({})
    assert [(fate.theirs, fate.outcome) for fate in draft.fates] == [("a.b", "carried"), ("a", "dropped")]


def test_json_says_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert peft(["migrate", str(FILES / "axolotl.yaml"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["tool"] == "Axolotl"
    assert {"theirs": "lora_r", "value": 32, "outcome": "carried", "ours": "method.r", "remark": None} in document[
        "fates"
    ]
