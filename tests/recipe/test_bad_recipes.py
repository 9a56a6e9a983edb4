"""Bad recipes: each mistake has its place, names what is wanted, and is told together with all others."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftcli.data.config import SourceConfig
from peftcli.errors import PeftcliError, RecipeError, StorageError
from peftcli.recipe import foreign_names, load_recipe
from peftcli.recipe.keys import sections_of
from peftcli.recipe.schema import Recipe

BASE = "model: builtin:tiny\ndata: {train: builtin:support, validation: 0.1}\nmethod: lora\n"

# a recipe's further lines (they begin at line 4), the place, what the message holds, what the remedy holds
BAD = [
    ("training: {learnin_rate: 1}", "4:12", "unknown key `learnin_rate` in `training`", "`learning_rate`"),
    ("trainig: {epochs: 1}", "4:1", "unknown key `trainig` at the top level", "`training`"),
    ("max_length: 12", "4:1", "unknown key `max_length`", "belongs under `data`"),
    ("training: {max_length: 12}", "4:12", "unknown key `max_length`", "belongs under `data`"),
    ("r: 8", "4:1", "unknown key `r`", "belongs under `method`"),
    ("generation: {seed: 3}", "4:14", "unknown key `seed`", "top level"),
    ("per_device_train_batch_size: 4", "4:1", "unknown key", "`training.micro_batch_size`"),
    ("training: {per_device_train_batch_size: 4}", "4:12", "unknown key", "`micro_batch_size`"),
    ("training: {num_train_epochs: 4}", "4:12", "unknown key", "`epochs`"),
    ("sequence_len: 4", "4:1", "unknown key", "`data.max_length`"),
    ("cutoff_len: 4", "4:1", "unknown key", "`data.max_length`"),
    ("max_seq_length: 4", "4:1", "unknown key", "`data.max_length`"),
    ("lora_r: 4", "4:1", "unknown key", "`method.r`"),
    ("lora_rank: 4", "4:1", "unknown key", "`method.r`"),
    ("lora_target: all", "4:1", "unknown key", "`method.target_modules`"),
    ("base_model: x", "4:1", "unknown key", "`model.base`"),
    ("gradient_accumulation_steps: 4", "4:1", "unknown key", "`training.batch_size`"),
    ("load_in_4bit: true", "4:1", "unknown key", "`model.quantization`"),
    ("output_dir: x", "4:1", "unknown key", "`output`"),
    ("trust_remote_code: true", "4:1", "unknown key", "--trust-remote-code"),
    ("_target_: os.system", "4:1", "unknown key", "names code"),
    ("zzzz: 1", "4:1", "unknown key `zzzz`", "known here: version"),
    ("training: {epochs: three}", "4:20", 'is the text "three"; wanted a number above 0', None),
    ("training: {learning_rate: fast}", "4:27", "wanted `auto` or a number above 0", None),
    ("training: {batch_size: 8.5}", "4:24", "is 8.5; wanted a whole number of at least 1", None),
    ('training: {batch_size: "8"}', "4:24", 'is the text "8"', "write the number alone: 8"),
    ('training: {batch_size: "1,024"}', "4:24", "wanted a whole number", "1024"),
    ("name: 12", "4:7", "`name` is 12; wanted text", 'put it in quotes: "12"'),
    ("name: true", "4:7", "`name` is true; wanted text", 'put it in quotes: "true"'),
    ("training: {gradient_checkpointing: off}", "4:36", "wanted true or false", "write `false`"),
    ("data: [a.jsonl]\nseed: [1]", "5:7", "`seed` is a list; wanted a whole number", None),
    ("training:", "4:10", "`training` is empty", None),
    ("training: {learning_rate: -1e-4}", "4:27", "is -0.0001; wanted", None),
    ("training: {learning_rate: 0}", "4:27", "is 0; wanted", None),
    ("training: {learning_rate: .nan}", "4:27", "is nan; wanted a finite number", None),
    ("training: {learning_rate: .inf}", "4:27", "is inf; wanted a finite number", None),
    ("training: {learning_rate: 1e999}", "4:27", "is inf; wanted a finite number", None),
    ("training: {weight_decay: -0.1}", "4:26", "of at least 0", None),
    ("training: {batch_size: 0}", "4:24", "of at least 1", None),
    ("training: {micro_batch_size: 0}", "4:30", "`auto` or a whole number of at least 1", None),
    ("training: {batch_size: 4, micro_batch_size: 8}", "4:45", "is larger than batch_size 4", "lower it"),
    ("training: {epochs: 1, max_steps: 5}", "4:23", "two ways", "keep one"),
    ("training: {epochs: 0}", "4:20", "above 0", None),
    ("training: {max_steps: 10, warmup_steps: 20}", "4:27", "more than the 10 of the run", None),
    ("training: {warmup_steps: 2, warmup_ratio: 0.1}", "4:26", "two ways", None),
    ("training: {warmup_ratio: 1.5}", "4:26", "below 1", None),
    ("training: {optimizer: adamx}", "4:23", "wanted `ada", "`adamw`"),
    ("training: {optimizer: adamw_torch}", "4:23", "wanted `ada", "`adamw`"),
    (
        "training: {optimizer: {type: sgd, betas: [0.9, 0.9]}}",
        "4:35",
        "unknown key `betas` in `training.optimizer`",
        None,
    ),
    ("training: {optimizer: {type: adamw, betas: [0.9]}}", "4:44", "betas", None),
    ("training: {optimizer: {type: adamw, betas: [0.9, 2]}}", "4:50", "below 1", None),
    ("training: {scheduler: cosin}", "4:23", "wanted `con", "`cosine`"),
    ("training: {scheduler: constant_with_warmup}", "4:23", "wanted `con", "`constant`"),
    ("training: {precision: bfloat16}", "4:23", "wanted `auto`", "`bf16`"),
    ("training: {early_stopping: {metric: eval_bleu}}", "4:29", "`eval_bleu` is not computed", "evaluation.metrics"),
    ("training: {early_stopping: {patience: 0}}", "4:39", "of at least 1", None),
    ("training: {precision: fp32}\nmodel: {base: x/y, dtype: bfloat16}", "4:12", "compute in bfloat16", "auto"),
    ("checkpoint: {best: eval_f9}", "4:14", "`eval_f9` is not computed", None),
    ("checkpoint: {keep: 0}", "4:20", "of at least 1", None),
    ("evaluation: {metrics: [exact_mach]}", "4:23", "unknown metric `exact_mach`", "`exact_match`"),
    ("evaluation: {metrics: loss}", "4:23", "wanted a list", "write a list"),
    ("evaluation: {every: 0}", "4:21", "of at least 1", None),
    ("generation: {top_p: 1.5}", "4:21", "of at most 1", None),
    ("generation: {temperature: 0}", "4:27", "of at least 1e-06", None),
    ("seed: -1", "4:7", "of at least 0", None),
    ("seed: 4294967296", "4:7", "of at most 4294967295", None),
    ("seed: abc", "4:7", 'is the text "abc"', None),
    ("seed: true", "4:7", "is true; wanted a whole number", None),
    (f"seed: {'9' * 99}", "4:7", "a very large number", None),
    ("version: 2", "4:10", "`version`", None),
    ("device: gpu", "4:9", "wanted `auto`, `cpu`", "`cuda`"),
    ("threads: 0", "4:10", "of at least 1", None),
    ("task: causal", "4:7", "unknown task `causal`", "causal-lm"),
    ("name: ../../x", "4:7", "`name`: must be", None),
    ("name: CON", "4:7", "`name`: must be", None),
    (f"name: {'x' * 65}", "4:7", "`name`: must be", None),
    ('name: "a\\u202eb"', "4:7", "`name`: must be", None),
    ('output: "a\\nb"', "4:9", "printable", None),
    ('output: ""', "4:9", "`output`", None),
    ("name: ${RUN}", "4:7", "holds `${...}`", "--set name="),
    ("hub_token: abc", "4:1", "asks for a secret", "environment"),
    ("training: {wandb_api_key: abc}", "4:12", "asks for a secret", "environment"),
    (
        "generation: {system_prompt: my key is hf_abcdefghijklmnopqrstuvwxyz12345678}",
        "4:29",
        "holds a secret",
        "environment",
    ),
    ("output: https://user:pass@example.com/x", "4:9", "holds a secret", "environment"),
    ("data: {train: a.jsonl, max_length: 1}", "4:36", "of at least 2", None),
    ("data: {train: a.jsonl, max_lenght: 1}", "4:24", "unknown key `max_lenght` in `data`", "`max_length`"),
    ("data: {train: []}", "4:15", "is an empty list", None),
    ("data: {train: [{path: a.jsonl, splt: x}]}", "4:32", "unknown key `splt` in `data.train[0]`", "`split`"),
    ("data: {train: [{path: a.jsonl, weight: 0}]}", "4:40", "above 0", None),
    ("data: {train: [{split: x}]}", "4:16", "`data.train[0]` lacks the key `path`", None),
    ("data: {train: a.jsonl, validation: 1.5}", "4:36", "a fraction below 1", None),
    ("data: {train: a.jsonl, validation: true}", "4:36", "is true", None),
    ("data: {train: a.jsonl, format: alpaca-ish}", "4:32", "unknown format", None),
    ("data: {train: a.jsonl, columns: [a]}", "4:33", "wanted a section", None),
    ("data: {train: a.jsonl, truncation: cut}", "4:36", "wanted `auto`, `error`", None),
    ("data: {max_length: 12}", "4:7", "`data` lacks the key `train`", None),
    ("model: {dtype: float32}", "4:8", "`model` lacks the key `base`", None),
    ("model: {base: x/y, dtype: bf16}", "4:27", "wanted `auto`, `float32`", "`bfloat16`"),
    ("model: {base: x/y, revision: ../x}", "4:30", "commit, tag or branch", None),
    ("model: 3", "4:8", "wanted the name of a base", "put it in quotes"),
    ("method: {r: 8}", "4:9", "`method` lacks the key `type`", "peft methods"),
    ("method: {type: lroa}", "4:16", "unknown method `lroa`", "`lora`"),
    ("method: lroa", "4:9", "unknown method `lroa`", "`lora`"),
    ("method: {type: lora, r: 0}", "4:25", "`method.r` is 0; wanted a whole number of at least 1", None),
    ("method: {type: lora, r: -4}", "4:25", "of at least 1", None),
    ('method: {type: lora, r: "8"}', "4:25", 'is the text "8"', "write the number alone"),
    ("method: {type: lora, rank: 8}", "4:22", "unknown key `rank` in `method`", "`r`"),
    ("method: {type: lora, lora_dropout: 1.5}", "4:36", "below 1", None),
    ("method: {type: lora, lora_alpha: 0}", "4:34", "above 0", None),
    ("method: {type: lora, lora_alpha: .nan}", "4:34", "finite", None),
    ("method: {type: bitfit, r: 8}", "4:24", "unknown key `r` in `method`", None),
    ("method: [lora]", "4:9", "`method` is a list", None),
    # keys whose time has not come
    ("seeds: 0", "4:8", "of at least 1", None),
    ("task: preferences", "4:7", "unknown task", "preference"),
    ("task: dpo", "4:7", "unknown task", "preference"),
    ("preference: {beta: 0.1}", "4:1", "no meaning for `task: causal-lm`", "leave it out"),
    ("task: preference\npreference: {loss: dpo, label_smoothing: 0.5}", "5:42", "0.5", None),
    ("task: preference\npreference: {loss: ipo, simpo_gamma: 1.0}", "5:13", "simpo_gamma", "simpo"),
    ("data: {train: a.jsonl, train_on: all}\ntask: preference", "4:24", "compares whole answers", "leave it out"),
    ("data: {train: a.jsonl, truncation: split}\ntask: preference", "4:24", "cannot split rows", "drop"),
    ("data: {train: a.jsonl, truncation: split}\ntask: seq2seq-lm", "4:24", "cannot split rows", "drop"),
    ("data: {train: a.jsonl, thoughts: mask}\ntask: preference", "4:24", "compares whole answers", "leave it out"),
    ("data: {train: a.jsonl, thoughts: 0.5}\ntask: embedding", "4:24", "no thoughts before an answer", "leave it out"),
    ("tracking: [wanb]", "4:11", "no tracker 'wanb'", "`wandb`"),
    ("data: {train: a.jsonl, packing: auto}", "4:33", "not supported yet", None),
    ("training: {offload: activations}", "4:21", "not supported yet", None),
    ("training: {neftune_noise_alpha: .inf}", "4:33", "finite", None),
    ("training: {compile: maybe}", "4:21", "wanted true or false", None),
    ("training: {processes: 0}", "4:23", "of at least 1", None),
    ("model: {base: x/y, quantization: nf5}", "4:34", "nf5", "`nf4`"),
    ("training: {kernels: [x]}", "4:21", "no kernel 'x'", None),
    ("model: {base: x/y, attention: flash_attention_2}", "4:31", "not supported yet", None),
]


def write(folder: Path, lines: str) -> Path:
    """A good recipe with further lines; a section named there replaces the good one, line numbers unchanged."""
    named = {line.split(":")[0] for line in lines.splitlines() if line and not line.startswith(" ")}
    kept = "".join("\n" if line.split(":")[0] in named else line + "\n" for line in BASE.splitlines())
    path = folder / "r.yaml"
    path.write_text(kept + lines + "\n", encoding="utf-8")
    return path


def failure(path: Path, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, list(overrides))
    return caught.value


@pytest.mark.parametrize(("lines", "place", "message", "fix"), BAD, ids=[row[0][:50] for row in BAD])
def test_one_mistake_has_place_and_remedy(
    tmp_path: Path, lines: str, place: str, message: str, fix: str | None
) -> None:
    path = write(tmp_path, lines)
    error = failure(path)
    assert error.exit_code == 2
    assert [fault.where for fault in error.faults] == [f"{path}:{place}"], error.render()
    assert message in error.faults[0].message
    if fix is not None:
        assert fix in str(error.faults[0].fix)
    text = error.render()
    assert len(text.splitlines()) <= 12
    assert all(word not in text for word in ("pydantic", "Traceback", "validator", "Input should", "Value error"))


def test_all_mistakes_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    lines = [row[0] for row in BAD if row[0].startswith("training: {") and row[0].count("\n") == 0]
    inner = [line.removeprefix("training: {").removesuffix("}") for line in lines]
    chosen = [
        "learnin_rate: 1",
        "batch_size: 8.5",
        "weight_decay: -0.1",
        "optimizer: adamx",
        "scheduler: cosin",
        "epochs: 1",
        "max_steps: 5",
        "early_stopping: {metric: eval_bleu}",
    ]
    assert set(chosen[:5]) <= set(inner), "the table above knows these"
    path = write(tmp_path, "training:\n" + "".join(f"  {line}\n" for line in chosen) + "seed: -1\nzzz: 1\n")
    where = [fault.where for fault in failure(path).faults]
    # both ways to say how long stand in lines 10 and 11; the fault is told once
    assert where == [
        f"{path}:{line}" for line in ("5:3", "6:15", "7:17", "8:14", "9:14", "11:3", "12:20", "13:7", "14:1")
    ]


def test_a_duplicate_key_does_not_hide_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\nseed: 2\ntraining: {epochz: 3}")
    faults = failure(path).faults
    assert len(faults) == 2
    assert "line 4:1" in faults[0].message
    assert "`epochs`" in str(faults[1].fix)


@pytest.mark.parametrize("missing", ["model", "data", "method"])
def test_a_missing_section_is_named_with_an_example(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("".join(line for line in BASE.splitlines(keepends=True) if not line.startswith(missing)))
    error = failure(path)
    assert f"lacks the key `{missing}`" in error.faults[0].message
    assert f"`{missing}: " in str(error.faults[0].fix)


EVALUATION_WITHOUT_ROWS = [
    "evaluation: {every: 10}",
    "training: {early_stopping: {patience: 2}}",
    "checkpoint: {best: eval_loss}",
]


@pytest.mark.parametrize("lines", EVALUATION_WITHOUT_ROWS)
def test_an_evaluation_needs_rows(tmp_path: Path, lines: str) -> None:
    path = write(tmp_path, "data: {train: builtin:support, validation: 0}\n" + lines)
    error = failure(path)
    assert "validation rows" in error.faults[0].message
    assert "data.validation" in str(error.faults[0].fix)
    assert error.faults[0].where is not None
    assert error.faults[0].where.startswith(f"{path}:5:")


def test_a_secret_is_never_repeated(tmp_path: Path) -> None:
    secret = "hf_" + "a1B2" * 8
    path = write(tmp_path, f"name: {secret}\noutput: {secret}\nseed: {secret}\ntraining: {{epochs: {secret}}}")
    error = failure(path)
    assert len(error.faults) == 4
    assert secret not in error.render()


@pytest.mark.parametrize("key", ["num_tokens", "cls_token", "pad-token", "eos_token", "max_new_tokens"])
def test_words_about_tokens_are_no_secrets(tmp_path: Path, key: str) -> None:
    assert "secret" not in failure(write(tmp_path, f"{key}: 1")).render()


FILES = [
    (b"", "empty"),
    (b"# only a comment\n", "empty"),
    (b"- a\n- b\n", "`key: value`"),
    (b"just text\n", "`key: value`"),
    (b"model: [\n", "not YAML"),
    (b"\xff\xfea\x00", "UTF-16"),
    (b"a: &b 1\n", "anchors"),
    (b"a: !!python/name:os.system\n", "tags"),
]


@pytest.mark.parametrize(("data", "message"), FILES)
def test_files_that_are_no_recipe(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    error = failure(path)
    assert message in error.render()
    assert str(path) in error.render()
    assert error.faults[0].fix


def test_a_missing_file_names_its_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "support.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    error = failure(Path("support.yaml"))
    assert "recipe not found: support.yaml" in error.render()
    assert "recipes/support.yaml" in error.render()


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    write(tmp_path, "")
    error = failure(tmp_path)
    assert "is a folder" in error.render()
    assert "r.yaml" in error.render()


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.yaml")
    assert "not a regular file" in failure(tmp_path / "pipe.yaml").render()


def test_a_file_without_permission_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    path = write(tmp_path, "")

    def refuse(path: Path, *_: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match="permission"):
        load_recipe(path)


OVERRIDES = [
    ("foo=1", "unknown key `foo`"),
    ("training.learnin_rate=1", "`learning_rate`"),
    ("method.r=abc", "`method.r`"),
    ("nonsense", "not an assignment"),
    ("=1", "not an assignment"),
    ("a..b=1", "not an assignment"),
    ("method.r=[1", "not YAML"),
    ("seed.x=1", "`seed`"),
    ("extends=base.yaml", "cannot be set"),
    ("training.epochs=null", None),
    ("training.max_steps=5", None),
]


@pytest.mark.parametrize(("override", "message"), OVERRIDES)
def test_overrides_are_checked_like_the_file(tmp_path: Path, override: str, message: str | None) -> None:
    path = write(tmp_path, "training: {epochs: 2}")
    if message is None:
        load_recipe(path, [override])
        return
    error = failure(path, override)
    assert message in error.render()
    assert "--set" in str(error.faults[0].where)


def test_every_error_is_one_of_ours(tmp_path: Path) -> None:
    for name in ("x\0y", "a" * 5000):
        with pytest.raises(PeftcliError):
            load_recipe(tmp_path / name)


def test_every_word_within_a_section_leads_to_one_of_its_keys() -> None:
    """The advice is about keys that are there, and no word of it is a key itself."""
    sections = {"data.train": SourceConfig, "data.validation": SourceConfig}
    for name in foreign_names._WITHIN:
        section = sections.get(name) or sections_of(Recipe.model_fields[name].annotation)[0]
        words = foreign_names.words_within(name)
        assert words
        assert set(words.values()) <= set(section.model_fields), name
        assert not set(words) & set(section.model_fields), name
