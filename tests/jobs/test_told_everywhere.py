"""What is odd about a recipe or a result is told by every command that it concerns, and what commands say is true."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import peftcli
from peftcli.adapters.registry import config_class, own_method_names
from peftcli.cli.entry import run as peft

RECIPE = """\
model: builtin:tiny
data: {train: builtin:support, validation: 4, max_length: 256}
method: {type: lora, r: 4}
training: {max_steps: 2, batch_size: 4, scheduler: linear, weight_decay: 0.1}
evaluation: {samples: 0}
generation: {top_p: 0.9, max_new_tokens: 8}
threads: 1
"""
IDLE = "generation.top_p has no effect without `do_sample: true`"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in three settings."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "r.yaml").write_text(RECIPE)
    peftcli.train(folder / "r.yaml", output=folder / "a")
    changes = {"training.scheduler": "cosine", "training.weight_decay": 0.0, "method.lora_dropout": 0.1}
    peftcli.train(folder / "r.yaml", output=folder / "b", overrides=changes)
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize(
    "arguments",
    [
        ["validate", "r.yaml"],
        ["plan", "r.yaml"],
        ["train", "r.yaml", "--output", "again", "--replace"],
        ["evaluate", "a"],
        ["generate", "a", "--prompt", "hi"],
        ["generate", "b", "--prompt", "hi", "--set", "generation.top_p=0.8"],
    ],
    ids=lambda value: value[0],
)
def test_a_setting_without_effect_is_told(arguments: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peft(arguments) == 0
    shown = capsys.readouterr()
    assert IDLE in re.sub(r"\s+", " ", shown.out + shown.err)
    if arguments[0] == "train":
        first, second = shown.err.splitlines()[:2]
        assert first == "r: reading builtin:support", "what it does, from the first second"
        assert second.startswith("loading builtin:tiny for 2 steps into ")


def test_a_setting_without_effect_is_in_the_record(here: Path) -> None:
    assert IDLE in json.loads((here / "a" / "run.json").read_text())["warnings"]


def test_a_rows_own_answer_is_kept(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "hi", "answer": "mine"}, {"prompt": "hi"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert peft(["generate", "a", "--input", str(tmp_path / "rows.jsonl"), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["answers"]
    assert first["answer"] == "mine"
    assert first["generated_answer"] == second["answer"]


def test_reports_of_several_runs_show_what_their_recipes_differ_in(here: Path, tmp_path: Path) -> None:
    assert peft(["report", "a", "b", "--output", str(tmp_path)]) == 0
    for name in ("compare.md", "compare.html"):
        text = (tmp_path / name).read_text()
        for key in ("scheduler", "weight_decay", "lora_dropout"):
            assert key in text, (name, key)
        assert "as the recipe says" not in text


def test_a_log_with_another_digit_is_written_again_from_the_checkpoint(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that goes on keeps the losses that it had, whatever became of its log."""
    run = Path(shutil.copytree("a", tmp_path / "run"))
    for name in ("run.json", "recipe.lock"):
        (run / name).unlink()
    log = run / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    wrong = [{**line, "loss": line["loss"] + 1} if line["event"] == "train" else line for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in wrong))
    assert peft(["resume", str(run), "--quiet"]) == 0
    told = capsys.readouterr()
    assert "metrics.jsonl" in told.err + json.dumps(json.loads((run / "run.json").read_text())["warnings"])
    last = {
        line["step"]: line["loss"] for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "train"
    }
    assert last == {line["step"]: line["loss"] for line in lines if line["event"] == "train"}


def test_no_method_calls_itself_the_smallest(capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes are counted, not praised: which method has the fewest parameters depends on base and settings."""
    for name in own_method_names():
        assert peft(["methods", name]) == 0
        assert "smallest adapter" not in capsys.readouterr().out.lower(), name
        assert "smallest" not in (config_class(name).__doc__ or "").lower(), name
