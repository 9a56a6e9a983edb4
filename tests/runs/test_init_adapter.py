"""`model.init_adapter`: training goes on from an adapter, whose own fields rule, and the chain of runs is one."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import peftcli
from peftcli.cli.entry import run as peft
from peftcli.errors import AdapterError, DataError, Interrupted, PeftcliError, RecipeError
from peftcli.jobs.evaluate import evaluate_adapter
from peftcli.models.builtin import builtin_base
from peftcli.planning.plan import prepare_run
from peftcli.recipe import load_recipe
from peftcli.testing.sections import SECTIONS
from peftcli.training.stepper import Stepper

TENSORS = "adapter_model.safetensors"


def recipe(folder: Path, name: str, **sections: Any) -> Path:
    document: dict[str, Any] = {
        "model": {"base": "builtin:tiny"},
        "data": {"train": "builtin:support", "validation": 8, "max_length": 128},
        "method": {"type": "lora", "r": 4},
        "training": {"max_steps": 2, "batch_size": 4, "learning_rate": 2e-3},
        "evaluation": {"samples": 0},
        "checkpoint": {"best": None},
        "threads": 1,
    }
    for section, fields in sections.items():
        if fields is None:
            document.pop(section)
        elif section == "model":
            document[section] |= fields
        else:
            document[section] = fields
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def evaluations(run: Path) -> dict[int, dict[str, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line.pop("step"): line for line in lines if line["event"] == "eval" and line.pop("event")}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `first` and its recipe."""
    folder = tmp_path_factory.mktemp("chain")
    peftcli.train(recipe(folder, "first"), output=folder / "first")
    return folder


def bare_copy(run: Path, target: Path) -> Path:
    """The adapter alone, as the reference would have written it."""
    target.mkdir()
    for name in ("adapter_config.json", TENSORS):
        shutil.copy(run / "adapter" / name, target / name)
    return target


# -- the chain ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["run", "adapter", "reference's files"])
def test_the_second_run_starts_where_the_first_one_ended(first: Path, tmp_path: Path, form: str) -> None:
    start = {
        "run": lambda: first / "first",
        "adapter": lambda: first / "first" / "adapter",
        "reference's files": lambda: bare_copy(first / "first", tmp_path / "bare"),
    }[form]()
    path = recipe(tmp_path, "second", model={"init_adapter": str(start)}, method=None)
    record = peftcli.train(path, output=tmp_path / "second")
    before, after = evaluations(first / "first"), evaluations(tmp_path / "second")
    assert after[0] == before[2], "the very numbers"
    assert record.evaluation.base == before[0], "the base is still the base"
    assert record.start is not None
    assert record.start.evaluation == before[2]
    assert record.method == "lora"
    assert record.recipe["method.r"] == 4
    own = json.loads((tmp_path / "second" / "adapter" / "adapter_config.json").read_text())
    assert own == json.loads(
        (start if form != "run" else start / "adapter").joinpath("adapter_config.json").read_text()
    )
    card = (tmp_path / "second" / "adapter" / "README.md").read_text()
    assert f"Continued from | `{start.name} (adapter_model.safetensors {record.start.files[TENSORS][:12]})`" in card
    assert str(tmp_path) not in card
    for name in ("report.md", "report.html"):
        assert "Continued from" in (tmp_path / "second" / name).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("label", SECTIONS)
def test_every_method_goes_on(tmp_path: Path, label: str) -> None:
    path = recipe(tmp_path, "first", method=dict(SECTIONS[label]))
    try:
        prepare_run(load_recipe(path))
    except PeftcliError as error:
        pytest.skip(str(error))
    first = peftcli.train(path, output=tmp_path / "first")
    path = recipe(tmp_path, "second", model={"init_adapter": "./first"}, method=None)
    second = peftcli.train(path, output=tmp_path / "second")
    before, after = evaluations(tmp_path / "first")[2], evaluations(tmp_path / "second")[0]
    # a start that shifts the base is saved as a sum, which rounds
    assert after["eval_loss"] == pytest.approx(before["eval_loss"], rel=1e-6)
    assert first.evaluation.base == second.evaluation.base


def stopped(monkeypatch: pytest.MonkeyPatch, path: Path, folder: Path, step: int) -> None:
    train_step = Stepper.train_step

    def stopping(self: Stepper) -> None:
        train_step(self)
        if self.keeper.state.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "train_step", stopping)
        with pytest.raises(Interrupted):
            peftcli.train(path, output=folder)


def test_a_killed_second_run_resumes_to_the_same_bytes(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path, "second", model={"init_adapter": str(first / "first")}, method=None)
    peftcli.train(path, output=tmp_path / "whole")
    stopped(monkeypatch, path, tmp_path / "resumed", 1)
    peftcli.resume(tmp_path / "resumed")
    whole, resumed = (tmp_path / name / "adapter" / TENSORS for name in ("whole", "resumed"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert whole.read_bytes() != (first / "first" / "adapter" / TENSORS).read_bytes()


def test_preferences_after_supervision_compare_with_the_adapter_at_the_start(first: Path, tmp_path: Path) -> None:
    """The reference is the adapter that training goes on from: at step 0 nothing is preferred, and the loss is ln 2."""
    pairs = [
        {"prompt": f"Say {n}.", "chosen": f" yes, {n}", "rejected": f" no, not {n + 1}"} for n in range(16)
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    path = recipe(
        tmp_path,
        "second",
        task="preference",
        model={"init_adapter": str(first / "first")},
        method=None,
        data={"train": "./pairs.jsonl", "validation": 4, "max_length": 128},
    )
    record = peftcli.train(path, output=tmp_path / "second")
    found = evaluations(tmp_path / "second")
    assert found[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found[0]["eval_rewards_margins"] == pytest.approx(0, abs=1e-6)
    assert found[2]["eval_loss"] != found[0]["eval_loss"]
    # the bare base is another model than the one at the start, so it is not where the rewards are zero
    assert record.evaluation.base["eval_loss"] != pytest.approx(math.log(2), abs=1e-4)
    again = evaluate_adapter(tmp_path / "second").evaluation
    assert again.tuned["eval_loss"] == pytest.approx(found[2]["eval_loss"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["nf4", "int8"])
def test_it_goes_on_over_a_packed_base(tmp_path: Path, storage: str) -> None:
    pytest.importorskip("bitsandbytes")
    model = {"quantization": storage}
    peftcli.train(recipe(tmp_path, "first", model=model), output=tmp_path / "first")
    path = recipe(tmp_path, "second", model={**model, "init_adapter": "./first"}, method=None)
    record = peftcli.train(path, output=tmp_path / "second")
    before, after = evaluations(tmp_path / "first"), evaluations(tmp_path / "second")
    assert after[0] == before[2]
    assert record.evaluation.base == before[0]
    assert after[2] != after[0]


# -- its fields rule ---------------------------------------------------------------------------------------------


def test_every_contradiction_is_named(first: Path, tmp_path: Path) -> None:
    method = {"type": "dora", "r": 8, "lora_alpha": 32, "bias": "all", "use_rslora": False}
    path = recipe(tmp_path, "second", model={"init_adapter": str(first / "first")}, method=method)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    told = [fault.message for fault in caught.value.faults]
    assert len(told) == 3, told
    for key, wanted in (("r", "4"), ("bias", "none"), ("use_dora", "false")):
        assert any(f"`method.{key}` contradicts" in text and text.endswith(f"has {wanted}") for text in told), key


def test_another_method_is_a_contradiction(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, "second", model={"init_adapter": str(first / "first")}, method="ia3")
    assert peft(["validate", str(path)]) == 2
    assert "`method.type` contradicts the adapter of `model.init_adapter`, which has lora" in capsys.readouterr().err


def test_what_agrees_may_be_said(first: Path, tmp_path: Path) -> None:
    """Also by another rule for the same layers, and what steers training alone and no file of the reference says."""
    bare = bare_copy(first / "first", tmp_path / "bare")
    method = {"type": "lora", "r": 4, "target_modules": "all-linear", "loraplus_lr_ratio": 4.0}
    path = recipe(tmp_path, "second", model={"init_adapter": str(bare)}, method=method)
    prepared = prepare_run(load_recipe(path))
    assert prepared.method.model_dump()["loraplus_lr_ratio"] == 4.0
    method["target_modules"] = ["q_proj"]
    with pytest.raises(RecipeError, match=r"`method.target_modules` contradicts .* all but `model.layers"):
        prepare_run(load_recipe(recipe(tmp_path, "second", model={"init_adapter": str(bare)}, method=method)))


def test_without_an_adapter_the_method_is_still_asked_for(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="lacks the key `method`"):
        load_recipe(recipe(tmp_path, "first", method=None))


# -- the right base, the right file ------------------------------------------------------------------------------


def test_another_base_is_refused(first: Path, tmp_path: Path) -> None:
    shutil.copytree(builtin_base("tiny"), tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 0.5
    save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    model = {"base": "./other", "init_adapter": str(first / "first")}
    with pytest.raises(AdapterError, match="was trained on another base"):
        peftcli.train(recipe(tmp_path, "second", model=model, method=None), output=tmp_path / "second")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("./gone", "there is no such folder"),
        ("./second.yaml", "it is a file"),
        ("./empty", "it has no adapter_config.json"),
        ("nobody/nothing", "not in the local cache"),
        ("nobody/nothing@v1/x", "not in the local cache"),
        ("no body@x", "neither a folder nor a name of the Hub"),
    ],
)
def test_what_is_no_adapter_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, told: str) -> None:
    (tmp_path / "empty").mkdir()
    path = recipe(tmp_path, "second", model={"init_adapter": name}, method=None)
    code = peft(["train", str(path), "--output", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
    assert code == (11 if "nobody" in name else 4)
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_other_models_is_refused(first: Path, tmp_path: Path) -> None:
    data = {"train": "./rows.jsonl", "validation": 4}
    rows = [{"text": f"row {n}", "label": "ab"[n % 2]} for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = recipe(
        tmp_path,
        "c",
        model={"init_adapter": str(first / "first")},
        method=None,
        data=data,
        task="sequence-classification",
    )
    with pytest.raises(AdapterError, match=r"made for AutoModelForCausalLM.*trains AutoModelForSequenceClassification"):
        prepare_run(load_recipe(path))


def test_a_changed_adapter_is_noticed(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = bare_copy(first / "first", tmp_path / "start")
    path = recipe(tmp_path, "second", model={"init_adapter": "./start"}, method=None)
    run = tmp_path / "second"
    peftcli.train(path, output=run)
    assert peft(["lock", str(run), "--quiet"]) == 0
    assert json.loads(path.with_suffix(".lock").read_text())["init_adapter"]["name"] == "./start"
    assert peft(["reproduce", str(path), "--quiet"]) == 0
    tensors = load_file(start / TENSORS)
    next(iter(tensors.values())).view(-1)[0] += 1e-3
    save_file(tensors, start / TENSORS, {"format": "pt"})
    capsys.readouterr()
    assert peft(["train", str(path), "--locked", "--output", str(tmp_path / "third")]) == 10
    assert f"file {TENSORS} of model.init_adapter: locked" in capsys.readouterr().err
    assert peft(["reproduce", str(path)]) == 10
    printed = capsys.readouterr()
    assert f"file {TENSORS} of model.init_adapter" in printed.out + printed.err
    assert peft(["resume", str(run)]) == 7
    assert "files of model.init_adapter" in capsys.readouterr().err


def test_a_flipped_bit_in_a_run_is_told(first: Path, tmp_path: Path) -> None:
    shutil.copytree(first / "first", tmp_path / "first")
    tensors = load_file(tmp_path / "first" / "adapter" / TENSORS)
    next(iter(tensors.values())).view(-1)[0] += 1e-3
    save_file(tensors, tmp_path / "first" / "adapter" / TENSORS, {"format": "pt"})
    path = recipe(tmp_path, "second", model={"init_adapter": "./first"}, method=None)
    with pytest.raises(AdapterError, match="is not what the run wrote"):
        peftcli.train(path, output=tmp_path / "second")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as huggingface_hub keeps it, with one repository at one tag; returns the folder of its commit."""
    repository = folder / "cache" / "models--owner--tuned"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
    return repository / "snapshots" / COMMIT


def test_an_adapter_of_the_hub_is_read_from_the_cache(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare_copy(first / "first", hub_cache(tmp_path, monkeypatch))
    path = recipe(tmp_path, "second", model={"init_adapter": "owner/tuned@v1"}, method=None)
    record = peftcli.train(path, output=tmp_path / "second")
    assert record.start is not None
    assert (record.start.name, record.start.commit) == ("owner/tuned@v1", COMMIT)
    assert evaluations(tmp_path / "second")[0] == evaluations(first / "first")[2]
    lock = json.loads((tmp_path / "second" / "recipe.lock").read_text())["init_adapter"]
    assert lock["commit"] == COMMIT
    assert lock["name"] == "owner/tuned@v1"
    assert "| Continued from | `owner/tuned@v1` |" in (tmp_path / "second" / "adapter" / "README.md").read_text()


def test_a_recipe_of_the_hub_is_extended_from_the_cache(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same recipe, data included, gives the same run; a repository may be the recipe's and the adapter's."""
    snapshot = hub_cache(tmp_path, monkeypatch)
    bare_copy(first / "first", snapshot)
    # as the cache has it: a link into its blobs
    blob = snapshot.parents[1] / "blob"
    shutil.copy(first / "first" / "recipe.yaml", blob)
    (snapshot / "recipe.yaml").symlink_to(blob)
    path = tmp_path / "again.yaml"
    path.write_text("extends: owner/tuned@v1\noutput: null\n")
    assert peft(["validate", str(path)]) == 0
    peftcli.train(path, output=tmp_path / "again")
    assert (tmp_path / "again" / "adapter" / TENSORS).read_bytes() == (
        first / "first" / "adapter" / TENSORS
    ).read_bytes()
    assert "extends" not in (tmp_path / "again" / "recipe.yaml").read_text()
    for wrong, code, told in (
        ("owner/tuned@v9", 11, "is not in the local cache and the Hub cannot be reached"),
        ("owner/other", 11, "is not in the local cache"),
        ("owner/a..b@v1", 2, "neither a file nor a name of the Hub"),
        ("owner/tuned.yaml", 2, "recipe not found"),
    ):
        path.write_text(f"extends: {wrong}\n")
        capsys.readouterr()
        assert peft(["validate", str(path)]) == code, wrong
        assert told in capsys.readouterr().err, wrong
    (snapshot / "recipe.yaml").unlink()
    path.write_text("extends: owner/tuned@v1\n")
    assert peft(["validate", str(path)]) == 2
    assert "owner/tuned@v1 holds no recipe.yaml" in capsys.readouterr().err


# -- labels ------------------------------------------------------------------------------------------------------


def labelled(folder: Path, name: str, labels: str, **sections: Any) -> Path:
    rows = [{"text": f"{labels[n % len(labels)]} row {n}", "label": labels[n % len(labels)]} for n in range(24)]
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = {"train": f"./{name}.jsonl", "validation": 6}
    return recipe(folder, name, task="sequence-classification", data=data, **sections)


def test_a_head_goes_on_with_its_labels(tmp_path: Path) -> None:
    peftcli.train(labelled(tmp_path, "first", "xyz"), output=tmp_path / "first")
    model = {"init_adapter": "./first"}
    # fewer labels: the third output stays
    shutil.copy(tmp_path / "first.jsonl", tmp_path / "same.jsonl")
    path = recipe(
        tmp_path,
        "second",
        model=model,
        method=None,
        task="sequence-classification",
        data={"train": "./same.jsonl", "validation": 6},
    )
    peftcli.train(path, output=tmp_path / "second")
    assert evaluations(tmp_path / "second")[0] == evaluations(tmp_path / "first")[2]
    before, after = (load_file(tmp_path / name / "adapter" / TENSORS) for name in ("first", "second"))
    head = next(key for key in before if "score" in key)
    assert before.keys() == after.keys()
    assert not torch.equal(before[head], after[head])
    with pytest.raises(DataError, match="the label 'q', and the head of the adapter"):
        prepare_run(load_recipe(labelled(tmp_path, "other", "xyq", model=model, method=None)))
