"""Fifty mistakes of a first hour, each as it is typed: the exit code, and what is wrong, where, and what to do in at most
five lines, without a traceback."""

# ruff: noqa: E501 - a table reads best with an entry a line

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import peftcli
from peftcli.cli.entry import run as peft
from peftcli.models.builtin import builtin_base

MOST_LINES = 5
RECIPE = """\
model: builtin:tiny
data: {train: rows.jsonl, validation: 2, max_length: 128}
method: lora
training: {max_steps: 2, batch_size: 4}
evaluation: {samples: 0}
threads: 1
"""
ROWS = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}."} for n in range(16)]


@dataclass(frozen=True)
class Mistake:
    """`recipe`: (old, new) text of the good recipe, or a whole one. `rows`: the text of `rows.jsonl`. `told`: parts of
    the message: what, where and what to do."""

    name: str
    command: str
    code: int
    told: tuple[str, ...]
    recipe: tuple[str, str] | str = ("", "")
    rows: str | None = None
    before: Callable[[], object] = lambda: None


def in_recipe(name: str, old: str, new: str, *told: str, code: int = 2, command: str = "validate r.yaml") -> Mistake:
    return Mistake(name, command, code, told, recipe=(old, new))


def in_rows(name: str, rows: str, *told: str, code: int = 3, recipe: tuple[str, str] = ("", "")) -> Mistake:
    return Mistake(name, "plan r.yaml", code, told, recipe=recipe, rows=rows)


def typed(name: str, command: str, code: int, *told: str, before: Callable[[], object] = lambda: None) -> Mistake:
    return Mistake(name, command, code, told, before=before)


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def text(path: str, content: str) -> Callable[[], object]:
    return lambda: Path(path).write_text(content)


def nan_recipe() -> None:
    Path("r.yaml").write_text(
        RECIPE.replace("batch_size: 4", "batch_size: 4, learning_rate: 1e30, max_grad_norm: 1e30")
    )


def copied_run(change: Callable[[Path], object]) -> Callable[[], object]:
    """A copy of the run, `broken`, with something done to it."""
    return lambda: change(Path(shutil.copytree("run", "broken")))


THE_RECIPE = [
    in_recipe("a key with a typing error", "batch_size", "batchsize", "`batchsize`", "r.yaml:4", "batch_size"),
    in_recipe("a key in another section", "threads: 1", "learning_rate: 1e-4", "`learning_rate`", "r.yaml:6", "training"),
    in_recipe("a key of another tool", "batch_size: 4", "per_device_train_batch_size: 4", "`per_device_train_batch_size`", "r.yaml:4", "batch_size"),
    in_recipe("a text for a number", "batch_size: 4", "batch_size: four", "batch_size", '"four"', "r.yaml:4"),
    in_recipe("a percent sign", "validation: 2", "validation: 5%", "validation", "'5%'", "r.yaml:2", "write the number alone, 0.05"),
    in_recipe("a comma for the point", "max_steps: 2", "max_steps: 2, learning_rate: '0,001'", "learning_rate", '"0,001"', "alone: 0.001"),
    in_recipe("a key twice", "threads: 1", "threads: 1\nmethod: ia3", "`method`", "r.yaml:7", "line 3:1", "keep one"),
    in_recipe("a tab", "evaluation: {samples: 0}", "evaluation:\n\tsamples: 0", "r.yaml:6", "tab"),
    in_recipe("a bracket left open", "max_length: 128}", "max_length: 128", "r.yaml:3"),
    in_recipe("steps and epochs", "max_steps: 2", "max_steps: 2, epochs: 3", "max_steps", "epochs"),
    in_recipe("a colon without a space", "threads: 1", "threads:1", "r.yaml:6", "`threads: 1`"),
    in_recipe("nothing to train on", "train: rows.jsonl, ", "", "train", "r.yaml:2"),
    in_recipe("a negative rate", "max_steps: 2", "max_steps: 2, learning_rate: -1e-4", "learning_rate", "r.yaml:4"),
    in_recipe("a metric that nobody has", "samples: 0", "metrics: [loss, exactmatch]", "exactmatch", "exact_match"),
    in_recipe("a gate on what is not measured", "threads: 1", 'expect: {eval_f1: "> 0.5"}', "eval_f1", "evaluation.metrics"),
    typed("a recipe that is not there", "train recipe.yaml", 2, "recipe not found: recipe.yaml", "r.yaml?"),
    typed("a folder for a recipe", "train run", 2, "run is a folder", "recipe.yaml"),
    typed("rows for a recipe", "train rows.jsonl", 2, "rows.jsonl holds rows", "peft init --data rows.jsonl"),
    typed("an empty recipe", "train empty.yaml", 2, "empty.yaml", before=text("empty.yaml", "")),
]  # fmt: skip
THE_MODEL = [
    in_recipe("a base folder that is not there", "builtin:tiny", "./llama", "/llama", "r.yaml:1", "config.json", code=4),
    in_recipe("a built-in base that does not exist", "builtin:tiny", "builtin:tinny", "tinny", "tiny", code=4),
    in_recipe("a folder without a model", "builtin:tiny", "./empty", "config.json", code=4, command="plan r.yaml"),
    in_recipe("an adapter as the base", "builtin:tiny", "./run/adapter", "adapter", "model.init_adapter", code=4, command="plan r.yaml"),
    in_recipe("a weights file as the base", "builtin:tiny", "./base/model.safetensors", "is a file", "folder", code=4, command="plan r.yaml"),
    in_recipe("a template that is not there", "model: builtin:tiny", "model: {base: builtin:tiny, chat_template: mine.jinja}", "mine.jinja", code=4),
    in_recipe("a base by another key", "model: builtin:tiny", "model: {name: builtin:tiny}", "`name` in `model`", "`base`", "r.yaml:1"),
    in_recipe("four bits by another word", "model: builtin:tiny", "model: {base: builtin:tiny, quantization: 4bit}", '"4bit"', "did you mean `nf4`"),
    in_recipe("a task by another word", "threads: 1", "task: sft", "`sft`", "did you mean `causal-lm`", "r.yaml:6"),
    in_recipe("a device that is not here", "threads: 1", "device: tpu", "device", "cuda"),
    in_recipe("a Hub id without a network", "builtin:tiny", "some-org/some-base", "some-org/some-base", "cannot be reached", "folder", code=11, command="plan r.yaml"),
]  # fmt: skip
THE_METHOD = [
    in_recipe("a method that is misspelt", "method: lora", "method: lorra", "lorra", "`lora`", "r.yaml:3"),
    in_recipe("a field of another method", "method: lora", "method: {type: ia3, r: 8}", "`r`", "lora", "r.yaml:3"),
    in_recipe("a target that matches nothing", "method: lora", "method: {type: lora, target_modules: [query]}", "query", "q_proj", code=4, command="plan r.yaml"),
    in_recipe("targets in one text", "method: lora", "method: {type: lora, target_modules: 'q_proj, v_proj'}", "matches nothing", "[q_proj, v_proj]", code=4, command="plan r.yaml"),
    in_recipe("a method without its type", "method: lora", "method: {r: 8}", "lacks the key `type`", "`type: lora`", "r.yaml:3"),
    in_recipe("a rank of nothing", "method: lora", "method: {type: lora, r: 0}", "method.r", "r.yaml:3"),
    in_recipe("a dropout in percent", "method: lora", "method: {type: lora, lora_dropout: 5}", "lora_dropout", "5", "r.yaml:3"),
    typed("a method to explain that is none", "methods lorra", 2, "lorra", "lora"),
]  # fmt: skip
THE_DATA = [
    in_recipe("a data file that is not there", "rows.jsonl", "./row.jsonl", "row.jsonl", "rows.jsonl", code=3),
    in_recipe("built-in rows that do not exist", "rows.jsonl", "builtin:suport", "suport", "support", code=3, command="plan r.yaml"),
    in_recipe("a format that is none", "max_length: 128", "format: alpacca", "format", "alpacca"),
    in_rows("columns with other names", lines(*({"query": "a", "reply": "b"} for _ in range(8))), "query", "reply", "columns"),
    in_rows("a broken line", lines(*ROWS[:2]) + "{'prompt': 'a'}\n", "rows.jsonl:3", "JSON"),
    in_rows("an empty file", "", "rows.jsonl"),
    in_rows("an answer that is missing", lines(*ROWS[:2], {"prompt": "a"}), "rows.jsonl:3", "completion"),
    in_rows("a role with a typing error", lines(*({"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]} for _ in range(4))), "rows.jsonl:1", "usr", "user"),
    in_rows("rows longer than the base can read", lines(*ROWS, *({"prompt": "a " * 2000, "completion": "b"} for _ in range(9))), "max_length", "1024 at most", "rows.jsonl:"),
    in_rows("nothing left of a length", lines(*ROWS), "max_length", "rows.jsonl", recipe=("max_length: 128", "max_length: 3, truncation: drop")),
    in_rows("more held out than there is", lines(*ROWS[:4]), "validation", recipe=("validation: 2", "validation: 40")),
    in_recipe("rows by another key", "train: rows.jsonl", "file: rows.jsonl", "`file` in `data`", "`train`", "r.yaml:2"),
    in_recipe("a source by another key", "train: rows.jsonl", "train: [{file: rows.jsonl}]", "`file` in `data.train[0]`", "`path`"),
    in_recipe("a truth value in quotes", "max_length: 128", "packing: 'true'", "data.packing", "write `true`", "r.yaml:2"),
    Mistake("comparisons for answers", "validate r.yaml", 2, ("format preference", "rows.jsonl:1", "it trains on"), rows=lines(*({"prompt": "a", "chosen": "b", "rejected": "c"} for _ in range(8)))),
    Mistake("rows of another encoding", "validate r.yaml", 3, ("UTF-16", "iconv"), before=lambda: Path("rows.jsonl").write_text(lines(*ROWS), encoding="utf-16")),
    in_rows("a page instead of rows", "<html><body>not found</body></html>\n", "rows.jsonl:1", "JSON"),
]  # fmt: skip
THE_COMMANDS = [
    typed("a command with a typing error", "tarin r.yaml", 2, "tarin", "train"),
    typed("an option of another command", "train r.yaml --model builtin:tiny", 2, "--model"),
    typed("no recipe", "train", 2, "RECIPE"),
    typed("a key without a value", "validate r.yaml --set training.epochs", 2, "training.epochs", "--set training.epochs=1"),
    typed("a flag for a recipe key", "train r.yaml --learning-rate 1e-4", 2, "--learning-rate", "--set training.learning_rate=..."),
    typed("an override with a typing error", "validate r.yaml --set traning.max_steps=3", 2, "traning", "`training`"),
    typed("a starter that is none", "init chatbot", 2, "chatbot", "chat"),
    typed("a starter over a file", "init quickstart --output r.yaml", 6, "r.yaml", "--output"),
    typed("rows that are not there, to begin with", "init --data mine.jsonl", 3, "mine.jsonl"),
    typed("an output that holds a run", "train r.yaml --output run", 6, "run", "--replace"),
    typed("a rate beyond reason", "train r.yaml --quiet --output blown", 8, "the loss is nan", "blown/recipe.yaml`", "learning rate", before=nan_recipe),
    typed("memory without a unit", "plan r.yaml --device-memory lots", 2, "lots", "24GiB"),
]  # fmt: skip
AFTERWARDS = [
    typed("resuming what is no run", "resume empty", 7, "empty"),
    typed("a run that is not there", "evaluate runs/first", 4, "runs/first", "no such"),
    typed("an adapter without its recipe", "evaluate alone", 2, "has no recipe", "alone", "name a recipe"),
    typed("a merge over a folder", "merge run --output base", 6, "base", "--output"),
    typed("a merge of a model", "merge base --output merged", 4, "base", "whole model"),
    typed("a merge of what cannot be merged", "merge prompts --output merged", 4, "prompt_tuning"),
    typed("a base that is another one", "generate run --prompt hi --model other", 4, "another base", "--model"),
    typed("an adapter that is cut short", "generate broken --prompt hi", 4, "adapter_model.safetensors", before=copied_run(lambda run: os.truncate(run / "adapter" / "adapter_model.safetensors", 4000))),
    typed("a recipe for a run", "generate r.yaml --prompt hi", 4, "r.yaml", "peft train r.yaml"),
    typed("a recipe under another ending", "train r.yml", 2, "r.yml", "r.yaml?"),
    typed("a run's file for its folder", "inspect run/adapter/adapter_model.safetensors", 4, "adapter_model.safetensors", "name the folder"),
    typed("a prompt that is forgotten", "generate run", 2, "--prompt", "--input"),
    typed("prompts that are not there", "generate run --input prompts.jsonl", 3, "prompts.jsonl"),
    typed("a training key when asking", "generate run --prompt hi --set training.epochs=3", 2, "training.epochs", "generation"),
    typed("a lock that was never written", "reproduce r.yaml", 2, "lock"),
    typed("a report of nothing", "report empty", 4, "neither a run", "empty", "name a run"),
]  # fmt: skip
MISTAKES = [*THE_RECIPE, *THE_MODEL, *THE_METHOD, *THE_DATA, *THE_COMMANDS, *AFTERWARDS]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, an adapter that cannot be merged, a base in a folder and another one of its shape, an empty folder."""
    folder = tmp_path_factory.mktemp("first-hour")
    (folder / "rows.jsonl").write_text(lines(*ROWS))
    (folder / "r.yaml").write_text(RECIPE)
    peftcli.train(folder / "r.yaml", output=folder / "run")
    peftcli.train(folder / "r.yaml", output=folder / "prompts", overrides={"method": "prompt_tuning"})
    shutil.copytree(builtin_base("tiny"), folder / "base")
    shutil.copytree(builtin_base("tiny"), folder / "other")
    weights = folder / "other" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-400:-1:4] = bytes(1 for _ in data[-400:-1:4])
    weights.write_bytes(data)
    (folder / "empty").mkdir()
    shutil.copytree(folder / "run" / "adapter", folder / "alone")
    return folder


@pytest.fixture
def here(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The scene, to be spoiled: its large folders are links."""
    monkeypatch.chdir(tmp_path)
    for path in scene.iterdir():
        shutil.copytree(path, path.name, copy_function=os.link) if path.is_dir() else shutil.copy(path, path.name)
    return tmp_path


def test_there_are_fifty_and_each_is_another() -> None:
    assert len(MISTAKES) >= 50
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)
    assert len({(mistake.command, mistake.recipe, mistake.rows) for mistake in MISTAKES}) == len(MISTAKES)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_a_mistake_is_answered(mistake: Mistake, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if mistake.rows is not None:
        Path("rows.jsonl").write_text(mistake.rows)
    if isinstance(mistake.recipe, tuple):
        assert mistake.recipe[0] in RECIPE
        Path("r.yaml").write_text(RECIPE.replace(*mistake.recipe, 1) if mistake.recipe[0] else RECIPE)
    mistake.before()
    before = {path.name for path in here.iterdir()}
    assert peft(shlex.split(mistake.command)) == mistake.code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) <= MOST_LINES
    for part in mistake.told:
        assert part in said, part
    # what failed in the middle of training is kept, every other mistake leaves nothing behind
    assert {path.name for path in here.iterdir()} - before == ({"blown"} if mistake.code == 8 else set())
