"""From a file to a recipe: short forms, spellings, `extends`, overrides, paths, origins, and the way back to a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from peftcli.errors import RecipeError
from peftcli.recipe import (
    Gate,
    LoadedRecipe,
    flat_recipe,
    generation_from,
    is_path,
    load_recipe,
    parse_gate,
)

SHORT = "model: builtin:tiny\ndata: builtin:support\nmethod: lora\n"


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str, *overrides: str) -> LoadedRecipe:
    return load_recipe(write(folder, text), list(overrides))


# -- forms and spellings -------------------------------------------------------------------------------------------


def test_short_and_long_forms_are_one_recipe(tmp_path: Path) -> None:
    long = "model: {base: builtin:tiny}\ndata: {train: builtin:support}\nmethod: {type: lora}\n"
    assert load(tmp_path, SHORT).recipe == load(tmp_path, long).recipe


def test_a_list_of_sources_is_a_short_form(tmp_path: Path) -> None:
    recipe = load(
        tmp_path, "model: builtin:tiny\ndata: [builtin:support, {path: builtin:chat, rows: 5}]\nmethod: lora\n"
    ).recipe
    assert [source.path for source in recipe.data.train_sources] == ["builtin:support", "builtin:chat"]
    assert recipe.data.train_sources[1].rows == 5


def test_hyphens_and_underscores_are_one(tmp_path: Path) -> None:
    with_hyphens = SHORT.replace("lora", "prompt-tuning") + (
        "training: {batch-size: 4, optimizer: schedule-free, scheduler: constant, max-grad-norm: 2}\ntask: causal_lm\n"
    )
    recipe = load(tmp_path, with_hyphens).recipe
    assert recipe.method.name == "prompt_tuning"
    assert (recipe.training.batch_size, recipe.training.optimizer.type, recipe.task) == (
        4,
        "schedule_free",
        "causal-lm",
    )
    data = "data: {train: builtin:support, validation: 5, format: prompt_completion, train_on: last_turn}\n"
    recipe = load(
        tmp_path, SHORT.replace("data: builtin:support\n", data) + "evaluation: {metrics: [exact-match]}\n"
    ).recipe
    assert (recipe.data.format, recipe.data.train_on) == ("prompt-completion", "last-turn")
    assert recipe.evaluation.metrics == ["exact_match"]


def test_two_spellings_of_one_key_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="given twice"):
        load(tmp_path, SHORT + "training: {batch-size: 4, batch_size: 8}\n")


def test_free_maps_keep_their_spelling(tmp_path: Path) -> None:
    data = "data: {train: builtin:support, columns: {prompt: my-question}}\n"
    recipe = load(tmp_path, SHORT.replace("data: builtin:support\n", data)).recipe
    assert recipe.data.columns == {"prompt": "my-question"}


@pytest.mark.parametrize("text", ["2e-5", "2.0e-5", "0.00002", "2E-05"])
def test_learning_rates_are_numbers_however_written(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, SHORT + f"training: {{learning_rate: {text}}}\n").recipe.training.learning_rate == 2e-5


def test_short_names_of_methods_set_their_fields(tmp_path: Path) -> None:
    assert load(tmp_path, SHORT.replace("lora", "rslora")).recipe.method.use_rslora is True  # type: ignore[attr-defined]


# -- names and origins ---------------------------------------------------------------------------------------------

NAMES = [
    ("support.yaml", "support"),
    ("my recipe (1).yaml", "my-recipe-1"),
    ("...yaml", "recipe"),
    ("ä.yml", "recipe"),
    ("a.b.yaml", "a.b"),
]


@pytest.mark.parametrize(("file", "name"), NAMES)
def test_the_default_name_is_the_files(tmp_path: Path, file: str, name: str) -> None:
    loaded = load_recipe(write(tmp_path, SHORT, file))
    assert (loaded.name, loaded.recipe.name) == (name, name)


def test_every_key_has_an_origin(tmp_path: Path) -> None:
    loaded = load(tmp_path, SHORT + "training: {epochs: 2}\n", "training.batch_size=4")
    assert loaded.origin("training.epochs") == f"{tmp_path / 'r.yaml'}:4:20"
    assert loaded.origin("model.base") == f"{tmp_path / 'r.yaml'}:1:8"
    assert loaded.origin("training.batch_size") == "--set training.batch_size"
    assert loaded.origin("seed") == "default"
    assert set(loaded.origins) == set(flat_recipe(loaded.recipe))


# -- extends -------------------------------------------------------------------------------------------------------


def test_extends_merges_deeply_and_keeps_origins(tmp_path: Path) -> None:
    base = write(tmp_path, SHORT + "training: {epochs: 2, batch_size: 4}\nseed: 7\n", "base.yaml")
    loaded = load(tmp_path, "extends: base.yaml\ntraining: {batch_size: 8}\nmethod: {type: lora, r: 2}\n")
    assert (loaded.recipe.training.epochs, loaded.recipe.training.batch_size, loaded.recipe.seed) == (2, 8, 7)
    assert loaded.recipe.method.r == 2  # type: ignore[attr-defined]
    assert loaded.origin("training.epochs").startswith(str(base))
    assert loaded.name == "r"


def test_a_mistake_in_the_base_is_told_in_the_base(tmp_path: Path) -> None:
    base = write(tmp_path, SHORT + "training: {epochs: x}\n", "base.yaml")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, "extends: base.yaml\nseed: -1\n")
    assert [fault.where for fault in caught.value.faults] == [f"{base}:4:20", f"{tmp_path / 'r.yaml'}:2:7"]


def test_a_section_of_another_type_replaces_the_whole(tmp_path: Path) -> None:
    write(
        tmp_path,
        SHORT.replace("method: lora", "method: {type: lora, r: 4}")
        + "training: {optimizer: {type: adamw, eps: 1e-6}}\n",
        "base.yaml",
    )
    recipe = load(tmp_path, "extends: base.yaml\nmethod: bitfit\ntraining: {optimizer: sgd}\n").recipe
    assert (recipe.method.name, recipe.training.optimizer.type) == ("bitfit", "sgd")
    assert load(tmp_path, "extends: base.yaml\nmethod: lora\n").recipe.method.r == 4  # type: ignore[attr-defined]


def test_alternatives_replace_each_other_between_layers(tmp_path: Path) -> None:
    write(tmp_path, SHORT + "training: {epochs: 2, warmup_ratio: 0.1}\n", "base.yaml")
    training = load(tmp_path, "extends: base.yaml\ntraining: {max_steps: 30, warmup_steps: 3}\n").recipe.training
    assert (training.epochs, training.max_steps, training.warmup_ratio, training.warmup_steps) == (None, 30, None, 3)


def test_paths_of_a_base_are_relative_to_the_base(tmp_path: Path) -> None:
    (tmp_path / "shared" / "data").mkdir(parents=True)
    write(
        tmp_path,
        "model: ./model\ndata: {train: data/a.jsonl, validation: {path: data/b.jsonl}}\nmethod: lora\n",
        "shared/base.yaml",
    )
    recipe = load(tmp_path, "extends: shared/base.yaml\n").recipe
    assert recipe.model.base == str(tmp_path / "shared" / "model")
    assert recipe.data.train == str(tmp_path / "shared" / "data" / "a.jsonl")
    assert recipe.data.validation_sources[0].path == str(tmp_path / "shared" / "data" / "b.jsonl")


EXTENDS = [
    ("extends: r.yaml\n", "leads back to itself"),
    ("extends: https://example.com/x.yaml\n", "path of a recipe file"),
    ("extends: [a, b]\n", "path of a recipe file"),
    ("extends: missing.yaml\n", "recipe not found"),
    ("extends: .\n", "is a folder"),
    ("extends: a.yaml\n", "leads back to itself"),
    ("extends: /dev/zero\n", "regular file"),
]


@pytest.mark.parametrize(("text", "message"), EXTENDS)
def test_extends_that_leads_nowhere(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "extends: b.yaml\n" + SHORT, "a.yaml")
    write(tmp_path, "extends: a.yaml\n" + SHORT, "b.yaml")
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, text + SHORT)


def test_a_long_chain_ends(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path, f"extends: {number + 1}.yaml\n" + SHORT, f"{number}.yaml")
    write(tmp_path, SHORT, "12.yaml")
    with pytest.raises(RecipeError, match="more than 8"):
        load_recipe(tmp_path / "0.yaml")
    load_recipe(tmp_path / "6.yaml")


# -- overrides -----------------------------------------------------------------------------------------------------


def test_overrides_from_the_shell_and_from_python_agree(tmp_path: Path) -> None:
    path = write(tmp_path, SHORT + "training: {epochs: 2, optimizer: {type: adamw, eps: 1e-6}}\n")
    texts = [
        "method.r=4",
        "training.optimizer=sgd",
        "training.learning-rate=1e-3",
        "method.target_modules=[a, b]",
        "name=no",
    ]
    mapping = {
        "method": {"r": 4},
        "training.optimizer": {"type": "sgd"},
        "training.learning_rate": 1e-3,
        "method.target_modules": ("a", "b"),
        "name": "no",
    }
    one, other = load_recipe(path, texts), load_recipe(path, mapping)
    assert one.recipe == other.recipe
    assert (one.recipe.method.r, one.recipe.training.learning_rate) == (4, 1e-3)  # type: ignore[attr-defined]
    assert one.recipe.training.epochs == 2


def test_the_last_override_wins_and_null_is_a_value(tmp_path: Path) -> None:
    recipe = load(tmp_path, SHORT, "seed=1", "seed=2", "training.max_grad_norm=null").recipe
    assert (recipe.seed, recipe.training.max_grad_norm) == (2, None)


def test_another_method_by_override_drops_the_old_fields(tmp_path: Path) -> None:
    text = SHORT.replace("lora", "{type: lora, r: 4}")
    for override in (["method=bitfit"], ["method.type=bitfit"]):
        assert load(tmp_path, text, *override).recipe.method.name == "bitfit"
    recipe = load(tmp_path, text, "method.type=bottleneck", "method.reduction_factor=4").recipe
    assert recipe.method.reduction_factor == 4  # type: ignore[attr-defined]


def test_a_number_of_steps_by_override_replaces_epochs(tmp_path: Path) -> None:
    training = load(tmp_path, SHORT + "training: {epochs: 3}\n", "training.max_steps=5").recipe.training
    assert (training.epochs, training.max_steps) == (None, 5)


def test_paths_in_overrides_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "both.jsonl").touch()
    (tmp_path / "there" / "only.jsonl").touch()
    path = write(tmp_path / "there", SHORT)
    monkeypatch.chdir(tmp_path / "here")

    def train(value: str) -> object:
        return load_recipe(path, [f"data.train={value}"]).recipe.data.train

    assert train("both.jsonl") == str(tmp_path / "here" / "both.jsonl")
    assert train("only.jsonl") == str(tmp_path / "there" / "only.jsonl")
    assert train("./missing.jsonl") == str(tmp_path / "here" / "missing.jsonl")
    assert train("user/dataset") == "user/dataset"


def test_generation_alone(tmp_path: Path) -> None:
    config, seed = generation_from(["generation.temperature=0.7", "generation.do_sample=true", "seed=7"])
    assert (config.temperature, config.do_sample, seed) == (0.7, True, 7)
    with pytest.raises(RecipeError, match="temperature"):
        generation_from(["generation.temperature=0"])


# -- paths ---------------------------------------------------------------------------------------------------------

PATHS = [
    ("/x", True),
    ("./x", True),
    ("../x", True),
    ("~/x", True),
    ("a/b/c", True),
    ("here/x", True),
    ("here", True),
    ("data/*.jsonl", True),
    ("x.jsonl", True),
    ("data/x.parquet", True),
    ("Qwen/Qwen3-0.6B", False),
    ("gpt2", False),
    ("user/data.set", False),
    ("builtin:tiny", False),
    ("builtin:support/validation", False),
]


@pytest.mark.parametrize(("value", "expected"), PATHS)
def test_what_is_a_path(tmp_path: Path, value: str, expected: bool) -> None:
    (tmp_path / "here").mkdir()
    assert is_path(value, tmp_path) is expected


def test_inputs_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    text = (
        "model: {base: ./m, chat_template: t.jinja}\n"
        "data: {train: [data/a.jsonl, {path: ../b.jsonl}, user/set], validation: data/v.jsonl}\n"
        "method: lora\noutput: runs/x\n"
    )
    recipe = load(tmp_path, text).recipe
    assert (recipe.model.base, recipe.model.chat_template) == (str(tmp_path / "m"), str(tmp_path / "t.jinja"))
    assert [s.path for s in recipe.data.train_sources] == [
        str(tmp_path / "data/a.jsonl"),
        str(tmp_path.parent / "b.jsonl"),
        "user/set",
    ]
    assert recipe.output == "runs/x"


# -- warnings, gates -----------------------------------------------------------------------------------------------


def test_settings_without_effect_are_warned_about(tmp_path: Path) -> None:
    loaded = load(
        tmp_path, SHORT + "generation: {temperature: 0.5}\ntraining: {learning_rate: 3}\n", "model.revision=main"
    )
    assert [text.split()[0] for text in loaded.warnings] == [
        "generation.temperature",
        "model.revision",
        "training.learning_rate",
    ]


@pytest.mark.parametrize(
    ("text", "gate", "value", "holds"),
    [
        ("< 1.2", Gate("<", 1.2), 1.2, False),
        ("<=1.2", Gate("<=", 1.2), 1.2, True),
        ("> -1e-3", Gate(">", -1e-3), 0.0, True),
        (">= .5", Gate(">=", 0.5), 0.4, False),
        ("== 1", Gate("==", 1.0), 1.0, True),
        ("> 0", Gate(">", 0.0), float("inf"), False),
        ("< 5", Gate("<", 5.0), float("nan"), False),
    ],
)
def test_gates(text: str, gate: Gate, value: float, holds: bool) -> None:
    assert parse_gate(text) == gate
    assert gate.holds(value) is holds


@pytest.mark.parametrize("text", ["1.2", "< x", "", "=< 1", "< 1 or > 2", "< nan"])
def test_gates_that_compare_nothing(text: str) -> None:
    with pytest.raises(ValueError, match="comparison"):
        parse_gate(text)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_folder_whose_name_is_not_utf8_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "r.yaml").write_text("model: builtin:tiny\ndata: ./rows.jsonl\nmethod: lora\n")
    monkeypatch.chdir(folder)
    for path in (folder / "r.yaml", Path("r.yaml")):
        with pytest.raises(RecipeError, match="is not UTF-8"):
            load_recipe(path)
