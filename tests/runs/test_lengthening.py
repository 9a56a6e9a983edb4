"""`peft resume RUN --set training.max_steps=...`: a run that goes on, its schedule as asked and never by surprise."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import peftcli
from peftcli.cli.entry import run as peft
from peftcli.errors import Interrupted, RecipeError
from peftcli.training.config import TrainingConfig
from peftcli.training.schedules import schedule_of
from peftcli.training.stepper import Stepper

TENSORS = "adapter/adapter_model.safetensors"
RATE = 2e-3


def recipe(folder: Path, **training: Any) -> Path:
    path = folder / "first.yaml"
    document: dict[str, Any] = {
        "model": "builtin:tiny",
        "data": {"train": "builtin:support", "validation": 8, "max_length": 128},
        "method": {"type": "lora", "r": 2},
        "training": {"max_steps": 3, "batch_size": 4, "learning_rate": RATE, **training},
        "evaluation": {"samples": 0},
        "threads": 1,
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def lines(run: Path, event: str) -> dict[int, dict[str, Any]]:
    found = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line for line in found if line["event"] == event}


def rates(run: Path) -> list[float]:
    found = lines(run, "train")
    return [found[step]["learning_rate"] / RATE for step in sorted(found)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    peftcli.train(recipe(folder), output=folder / "run")
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_without_a_choice_nothing_happens_and_both_commands_are_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert peft(["resume", str(run), "--set", "training.max_steps=6"]) == 2
    told = capsys.readouterr().err
    assert "the schedule was made for 3 steps" in told
    for choice in ("stretch", "constant"):
        assert f"peft resume {run} --set training.max_steps=6 --set training.lengthened={choice}" in told
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("choice", ["stretch", "constant"])
def test_it_goes_on_as_asked_and_its_recipe_repeats_the_whole(
    run: Path, tmp_path: Path, choice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = lines(run, "train")
    settings = ["--set", "training.max_steps=6", "--set", f"training.lengthened={choice}"]
    shutil.copytree(run, tmp_path / "killed")
    assert peft(["resume", str(run), *settings, "--quiet"]) == 0
    # the steps before are those that were taken, those after are on the schedule that was asked for
    found = lines(run, "train")
    assert {step: found[step]["loss"] for step in (1, 2, 3)} == {step: line["loss"] for step, line in first.items()}
    cosine = [(0.5 + 0.5 * math.cos(math.pi * done / 3)) for done in range(3)]
    later = [(0.5 + 0.5 * math.cos(math.pi * done / 6)) for done in (3, 4, 5)]
    wanted = [*cosine, *(later if choice == "stretch" else [cosine[-1]] * 3)]
    assert rates(run) == pytest.approx(wanted)
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["steps"]) == ("completed", 6)
    assert record["recipe"]["training.lengthened"] == [{"after": 3, "planned": 3, "schedule": choice}]
    assert any("takes 6 steps instead of 3" in text and "step 4" in text for text in record["warnings"])
    lock = json.loads((run / "recipe.lock").read_text())
    assert lock["recipe"]["training.lengthened"][0] == [{"after": 3, "planned": 3, "schedule": choice}]
    # killed on the way, it goes on without being told again
    train_step = Stepper.train_step

    def stopping(self: Stepper) -> None:
        train_step(self)
        if self.keeper.state.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "train_step", stopping)
        with pytest.raises(Interrupted):
            peftcli.resume(tmp_path / "killed", overrides=settings[1::2])
    peftcli.resume(tmp_path / "killed")
    assert (tmp_path / "killed" / TENSORS).read_bytes() == (run / TENSORS).read_bytes()
    # and from nothing
    again = peftcli.train(run / "recipe.yaml", output=tmp_path / "again")
    assert (tmp_path / "again" / TENSORS).read_bytes() == (run / TENSORS).read_bytes()
    assert lines(tmp_path / "again", "eval") == lines(run, "eval")
    assert again.evaluation.tuned == record["evaluation"]["tuned"]
    capsys.readouterr()
    if choice == "stretch":
        assert peft(["reproduce", str(run), "--quiet"]) == 0


@pytest.mark.parametrize("first", [{"epochs": 1, "max_steps": None}, {}], ids=["by epochs", "by steps"])
def test_epochs_lengthen_too(tmp_path: Path, first: dict[str, Any]) -> None:
    """An epoch is six steps of four rows; a run whose length was said in steps takes them as well."""
    path = recipe(tmp_path, **first)
    document = json.loads(path.read_text())
    document["training"] = {key: value for key, value in document["training"].items() if value is not None}
    document["data"] |= {"train": {"path": "builtin:support", "rows": 32}, "checks": {"duplicates": "off"}}
    path.write_text(json.dumps(document), encoding="utf-8")
    run = tmp_path / "run"
    steps = peftcli.train(path, output=run).steps
    assert steps == (6 if first else 3)
    before = rates(run)
    with pytest.raises(RecipeError, match=f"the schedule was made for {steps} steps"):
        peftcli.resume(run, overrides=["training.epochs=2"])
    record = peftcli.resume(run, overrides=["training.epochs=2", "training.lengthened=constant"])
    assert (record.status, record.steps, record.epochs) == ("completed", 12, 2.0)
    assert rates(run) == pytest.approx([*before, *[before[-1]] * (12 - steps)])


def test_a_constant_rate_needs_no_choice(tmp_path: Path) -> None:
    run = tmp_path / "run"
    peftcli.train(recipe(tmp_path, scheduler="constant"), output=run)
    peftcli.resume(run, overrides={"training.max_steps": 4})
    assert rates(run) == [1.0] * 4


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["method.r=4"], "a run cannot go on under another method.r"),
        (["training.learning_rate=1"], "cannot go on under another training.learning_rate"),
        (["training.max_steps=2"], "has taken 3 steps, and is to have 2"),
        (["training.max_steps=3", "training.lengthened=stretch"], "has no effect"),
        (["training.max_steps=6", "training.lengthened=other"], "there is no such schedule"),
        (["training.max_steps=none"], "max_steps"),
        (["nonsense"], "cannot go on under another nonsense"),
    ],
)
def test_what_cannot_change_is_told(finished: Path, settings: list[str], told: str) -> None:
    before = (finished / "recipe.yaml").read_bytes()
    with pytest.raises(RecipeError) as caught:
        peftcli.resume(finished, overrides=settings)
    assert told in caught.value.render()
    assert (finished / "recipe.yaml").read_bytes() == before


def test_evaluation_and_checkpoints_may_change(run: Path) -> None:
    settings = ["training.max_steps=5", "training.lengthened=stretch", "evaluation.every=1", "checkpoint.keep=1"]
    peftcli.resume(run, overrides=settings)
    assert sorted(lines(run, "eval")) == [0, 3, 4, 5]


def test_the_word_alone_means_nothing_in_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="how the schedule of a run that has begun goes on"):
        peftcli.train(recipe(tmp_path, lengthened="stretch"), output=tmp_path / "run")


def test_several_lengths_in_turn() -> None:
    parts = [
        {"after": 4, "planned": 4, "schedule": "constant"},
        {"after": 6, "planned": 6, "schedule": "stretch"},
    ]
    config = TrainingConfig.model_validate({"scheduler": "linear", "warmup_steps": 0, "lengthened": parts})
    factor = schedule_of(config, 10)
    assert [factor(step) for step in range(1, 11)] == pytest.approx(
        [1, 0.75, 0.5, 0.25, 0.25, 0.25, 0.4, 0.3, 0.2, 0.1]
    )
