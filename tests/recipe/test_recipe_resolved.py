"""The way back to a file: the resolved recipe says all, and loads to the same recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftcli.adapters.registry import config_class, method_names
from peftcli.recipe import LoadedRecipe, flat_recipe, load_recipe, resolved_yaml
from peftcli.yaml import parse, plain
from peftcli.yaml_writing import dump

SHORT = "model: builtin:tiny\ndata: builtin:support\nmethod: lora\n"


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str) -> LoadedRecipe:
    return load_recipe(write(folder, text))


FULL = """\
model: {base: user/model, revision: main, dtype: float32, attention: sdpa, chat_template: t.jinja}
data:
  train: [{path: a.jsonl, weight: 2, rows: 10}, {path: user/set, split: "no", revision: main, weight: 0.5, repeat: 2}]
  validation: 0.05
  columns: {prompt: "on", completion: "2e-5"}
  checks: {duplicates: off}
  max_length: 64
method: {type: lora, r: 4, lora_alpha: 8, target_modules: [q, "no"], rank_pattern: {"a.b": 2}, modules_to_save: null}
training:
  max_steps: 7
  learning_rate: 2e-5
  optimizer: {type: adamw, betas: [0.8, 0.95], eps: 1e-6}
  scheduler: {type: wsd, decay: sqrt}
  max_grad_norm: null
  gradient_checkpointing: 2
  early_stopping: {patience: 2}
evaluation: {every: null, metrics: [loss, exact_match], samples: 0}
generation: {system_prompt: "Answer: yes, # no\\n", do_sample: true, temperature: 0.5}
checkpoint: {every: null, best: null}
seed: 0
name: a.b-c_d
"""
RECIPES = {
    "short": SHORT,
    "full": FULL,
    "prompt": SHORT.replace("lora", "prompt-tuning"),
    "bottleneck": SHORT.replace("lora", "houlsby"),
    "text": SHORT.replace("builtin:support", "{train: builtin:text, format: text, append_eos: false}"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_resolved_recipe_loads_to_the_same_recipe(tmp_path: Path, name: str) -> None:
    loaded = load(tmp_path, RECIPES[name])
    text = resolved_yaml(loaded)
    again = load_recipe(write(tmp_path / "elsewhere", text, "recipe.yaml"))
    assert again.recipe == loaded.recipe
    assert again.name == loaded.name
    once_more = load_recipe(write(tmp_path / "elsewhere", resolved_yaml(again), "recipe.yaml"))
    assert resolved_yaml(once_more) == resolved_yaml(again)


def test_the_resolved_recipe_has_resolved_values_and_no_output(tmp_path: Path) -> None:
    loaded = load(tmp_path, SHORT + "output: runs/x\n")
    text = resolved_yaml(loaded, {"training.learning_rate": 5e-3, "threads": 2})
    again = load_recipe(write(tmp_path, text, "recipe.yaml")).recipe
    assert again.output is None
    assert (again.training.learning_rate, again.threads) == (5e-3, 2)
    keys = [line.split(":")[0] for line in text.splitlines() if line[0].isalpha()]
    assert keys == [
        "version",
        "name",
        "seed",
        "seeds",
        "task",
        "device",
        "threads",
        "model",
        "data",
        "method",
        "training",
        "evaluation",
        "generation",
        "checkpoint",
    ]


def test_the_flat_recipe_names_every_key(tmp_path: Path) -> None:
    flat = flat_recipe(load(tmp_path, FULL).recipe)
    assert flat["method.type"] == "lora"
    assert flat["training.optimizer.betas"] == [0.8, 0.95]
    assert flat["data.columns"] == {"prompt": "on", "completion": "2e-5"}
    assert flat["training.early_stopping.metric"] == "eval_loss"
    assert flat["output"] is None


@pytest.mark.parametrize("name", method_names())
def test_a_default_that_is_written_out_is_the_very_value(name: str) -> None:
    """A run is known by its values: `2`, read again as `2.0`, was another run's, whose checkpoints nobody could resume."""
    section = config_class(name)
    fields = section().model_dump(exclude_none=True)
    text = dump({"method": fields}).encode()
    again = section.model_validate(plain(parse(text, "recipe").node)["method"])
    assert repr(again.model_dump(exclude_none=True)) == repr(fields)
