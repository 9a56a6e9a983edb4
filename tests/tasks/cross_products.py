"""Every method under every task, from a recipe on: what `peft validate` refuses, and else a run that is trained, stopped and
resumed, scored again from its adapter, and merged.

    PYTHONPATH=. python tests/tasks/cross_products.py [METHOD ...]

writes what was found into each method's own folder (`tasks.json`), which `peft methods` quotes; no name: all methods.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from label_bases import write_bert, write_gpt2, write_llama
from safetensors.torch import load_file
from test_seq2seq_lm import write_bart, write_t5

import peftcli
from peftcli import files
from peftcli.adapters.compatibility import NOT_MERGED, YES, refusal, tasks_path
from peftcli.adapters.registry import own_method_names
from peftcli.cli.entry import run as peft
from peftcli.errors import MergeError, PeftcliError
from peftcli.jobs.evaluate import evaluate_adapter
from peftcli.jobs.merge import merge_adapter
from peftcli.recipe import check_pairing, load_recipe
from peftcli.tasks.registry import task_names
from peftcli.testing.sections import cases_of

STEPS = 3
KEPT = "step-00000002"
"""The checkpoint that a stopped run goes on from."""
RATE = 0.05
"""Far above what trains well: three steps have to show."""
TENSORS = "adapter/adapter_model.safetensors"
WORDS = ("red", "blue", "green", "black", "white", "brown", "pink", "grey")
"""Of the rows: short, so that every row fits, and different, so that none is a duplicate."""


def _labelled(number: int) -> dict[str, Any]:
    return {"text": f"{WORDS[number % 8]} no {number}", "label": "ab"[number % 2]}


def _tagged(number: int) -> dict[str, Any]:
    return {"tokens": [WORDS[number % 8], "and", WORDS[number % 5]], "tags": ["B-A", "O", "B-B"]}


def _translated(number: int) -> dict[str, Any]:
    return {"source": f"say {WORDS[number % 8]} {number}", "target": WORDS[number % 8]}


def _compared(number: int) -> dict[str, Any]:
    word = WORDS[number % 8]
    return {"prompt": f"say {word} {number}", "chosen": f" {word}", "rejected": f" no {WORDS[(number + 3) % 8]}"}


def _answered(number: int) -> dict[str, Any]:
    return {"prompt": f"say {WORDS[number % 8]} {number}", "completion": f" {WORDS[number % 8]}."}


def _matched(number: int) -> dict[str, Any]:
    return {"anchor": f"{WORDS[number % 8]} {number}", "positive": f"a {WORDS[number % 8]} one, {number}"}


_BASE = re.compile(r" \(\S+ is of the family \w+\)$")
Writes = Callable[[Path], Path]
DECODERS: tuple[Writes, ...] = (write_llama, write_gpt2)
ENCODERS: tuple[Writes, ...] = (write_bert, write_llama)
CASES: Mapping[str, tuple[tuple[Writes, ...], Callable[[int], dict[str, Any]]]] = {
    "causal-lm": (DECODERS, _answered),
    "embedding": (ENCODERS, _matched),
    "preference": (DECODERS, _compared),
    "reward": (DECODERS, _compared),
    "seq2seq-lm": ((write_t5, write_bart), _translated),
    "sequence-classification": (ENCODERS, _labelled),
    "token-classification": ((write_bert,), _tagged),
}
"""Task -> bases (the first whose family the method works on is taken) and its n-th row."""


@dataclass(frozen=True)
class Found:
    """What became of a pair. `refused`: by `peft validate`, in its words. `unmerged`: why it was not merged."""

    refused: str | None = None
    unmerged: str | None = None

    def told(self) -> str:
        """As the table holds it."""
        if self.refused is not None:
            return self.refused
        return YES if self.unmerged is None else f"{NOT_MERGED}{self.unmerged}"


def cross(task: str, section: Mapping[str, Any], folder: Path) -> Found:
    """Runs one pair through everything. Raises `AssertionError` where two numbers differ that must be equal, and a
    `PeftcliError` where a step is refused that `peft validate` allowed."""
    recipe = write_recipe(task, section, folder)
    reason = refused(recipe)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        told = peft(["validate", str(recipe), "--quiet"])
    if reason is not None:
        assert told in (2, 4), f"`peft validate` ends with {told}"
        assert " ".join(reason.split()) in " ".join(said.getvalue().split())
        return Found(refused=reason)
    assert told == 0, f"`peft validate` ends with {told}"
    run = folder / "run"
    record = peftcli.train(recipe, output=run)
    assert record.status == "completed"
    before, after = record.evaluation.base["eval_loss"], record.evaluation.tuned["eval_loss"]
    assert math.isfinite(after)
    assert after != before, "the adapter has no effect"
    resumes_the_same(run, folder / "stopped")
    scores_the_same(run, record.evaluation.base, record.evaluation.tuned)
    return Found(unmerged=merged(run, folder / "merged"))


def write_recipe(task: str, section: Mapping[str, Any], folder: Path) -> Path:
    """A recipe of three steps on a tiny base, with its rows beside it."""
    bases, row = CASES[task]
    write = next((each for each in bases if not _unfit(section, each, folder)), bases[0])
    base = folder.parent / write.__name__
    if not base.is_dir():
        write(base)
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row(number)) for number in range(18)), encoding="utf-8")
    document = {
        "task": task,
        "model": str(base),
        "data": {"train": "./rows.jsonl", "validation": 6, "max_length": 64, "checks": {"duplicates": "off"}},
        "method": dict(section),
        "training": {"max_steps": STEPS, "batch_size": 4, "micro_batch_size": 2, "learning_rate": RATE},
        "evaluation": {"samples": 0},
        "generation": {"max_new_tokens": 4},
        "checkpoint": {"every": 2, "keep": 9, "best": None},
        "device": "cpu",
        "threads": 1,
    }
    path = folder / "crossed.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def _unfit(section: Mapping[str, Any], write: Writes, folder: Path) -> str | None:
    base = folder.parent / write.__name__
    if not base.is_dir():
        write(base)
    config = json.loads((base / "config.json").read_text())
    return refusal(str(section["type"]), config["model_type"], config)


def refused(recipe: Path) -> str | None:
    """Why a recipe is refused before anything is loaded; None where it is not."""
    try:
        check_pairing(load_recipe(recipe, (), fetch=False))
    except PeftcliError as error:
        told = error.faults[0].message if len(error.faults) == 1 else error.message
        # the base that was tried lies in a folder of the test
        return _BASE.sub("", told)
    return None


def resumes_the_same(run: Path, stopped: Path) -> None:
    """A run that was killed after its second step goes on to the same bytes."""
    shutil.copytree(run, stopped)
    for path in (stopped / "adapter", stopped / "checkpoints" / f"step-{STEPS:08d}"):
        shutil.rmtree(path)
    for name in ("run.json", "report.html", "report.md", "predictions.jsonl"):
        (stopped / name).unlink(missing_ok=True)
    assert max(path.name for path in (stopped / "checkpoints").iterdir()) == KEPT
    peftcli.resume(stopped)
    assert (stopped / TENSORS).read_bytes() == (run / TENSORS).read_bytes(), "a resumed run ends elsewhere"


def scores_the_same(run: Path, base: Mapping[str, float], tuned: Mapping[str, float]) -> None:
    """The adapter on disk has the numbers that training ended with; virtual tokens, read again, may round elsewhere."""
    again = evaluate_adapter(run).evaluation
    assert dict(again.base) == dict(base), f"the base scores {dict(again.base)}, in training {dict(base)}"
    assert again.tuned.keys() == tuned.keys()
    for name, value in tuned.items():
        assert math.isclose(again.tuned[name], value, rel_tol=1e-6, abs_tol=1e-6), (
            f"{name}: {again.tuned[name]}, in training {value}"
        )


def merged(run: Path, output: Path) -> str | None:
    """None where the merged model says what base and adapter say, to transformers too; else why it was not merged."""
    try:
        report = merge_adapter(run, output=output)
    except MergeError as error:
        assert not output.exists()
        return error.message
    assert report.max_difference <= report.tolerance
    assert report.adapter_effect > report.tolerance, "the adapter changes nothing, so the merge proves nothing"
    config = transformers.AutoConfig.from_pretrained(output)
    assert load_file(output / "model.safetensors")
    assert config.architectures
    return None


def told(task: str, method: str) -> str:
    """What the table says of a pair. Raises as `cross` does."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pair"
        folder.mkdir()
        return cross(task, cases_of(method)[method], folder).told()


def write_table(methods: Sequence[str]) -> int:
    """Writes each method's part where all of its pairs stand, and prints a line for each pair. Returns how many fell."""
    fallen = 0
    for method in methods:
        row: dict[str, str] = {}
        for task in task_names():
            try:
                row[task] = told(task, method)
            except Exception as error:  # whatever falls is told, and the others are tried
                fallen += 1
                print(f"FELL {method} under {task}: {type(error).__name__}: {error}", flush=True)
            else:
                print(f"{method} under {task}: {row[task]}", flush=True)
        if len(row) == len(task_names()):
            files.write_json(tasks_path(method), row)
    print(f"{fallen} fell")
    return fallen


if __name__ == "__main__":
    sys.exit(bool(write_table(sys.argv[1:] or own_method_names())))
