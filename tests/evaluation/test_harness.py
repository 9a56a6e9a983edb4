"""Base and tuned model by lm-evaluation-harness: its numbers are those that it gives a plain model, and an adapter shows."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import peftcli
from peftcli.cli.entry import run as peft
from peftcli.jobs.merge import merge_adapter
from peftcli.models.builtin import builtin_base

HERE = importlib.util.find_spec("lm_eval") is not None
harness = pytest.mark.skipif(not HERE, reason="needs the extra `eval`")
ROWS = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The skill of the quickstart, begun: enough to tell base and tuned model apart."""
    folder = tmp_path_factory.mktemp("harness")
    document = {
        "model": "builtin:tiny",
        "data": {"train": "builtin:support", "validation": 8, "max_length": 256},
        "method": "lora",
        "training": {"max_steps": 40, "batch_size": 16, "learning_rate": 8e-3},
        "evaluation": {"samples": 0},
        "checkpoint": {"best": None},
        "threads": 1,
    }
    (folder / "skill.yaml").write_text(json.dumps(document), encoding="utf-8")
    peftcli.train(folder / "skill.yaml", output=folder / "run")
    return folder / "run"


def task_files(folder: Path) -> str:
    """Two tasks in the harness's format over local rows: which of two records is likelier, and what is written."""
    from peftcli.data.builtin import builtin_data

    source = builtin_data("support/validation")
    rows = []
    for line in source.read_text(encoding="utf-8").splitlines()[:ROWS]:
        asked, answered = (turn["content"] for turn in json.loads(line)["messages"])
        category = json.loads(answered)["category"]
        other = next(name for name in ("billing", "repair", "delivery") if name != category)
        rows.append({"text": asked, "answer": answered, "other": answered.replace(f'"{category}"', f'"{other}"')})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    common: dict[str, Any] = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "target_delimiter": "",
    }
    choice = {
        "task": "choice",
        "output_type": "multiple_choice",
        "doc_to_choice": ["{{answer}}", "{{other}}"],
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    likely = {
        "task": "likely",
        "output_type": "loglikelihood",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
    }
    for task in (choice, likely):
        # JSON is YAML
        (folder / f"{task['task']}.yaml").write_text(json.dumps({**task, **common}), encoding="utf-8")
    return f"{folder / 'choice.yaml'},{folder / 'likely.yaml'}"


@harness
@pytest.mark.slow
def test_base_and_tuned_are_what_the_harness_says_of_plain_models(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lm_eval import simple_evaluate

    tasks = task_files(tmp_path)
    assert peft(["evaluate", str(run), "--tasks", tasks, "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    scores = {line["task"]: line for line in told["scores"]}
    assert told["chat_template"] is True
    assert scores["likely"]["tuned"] < 0.5 * scores["likely"]["base"], "the adapter has no effect"
    assert json.loads((run / "harness.json").read_text(encoding="utf-8")) == told
    merge_adapter(run, output=tmp_path / "merged")
    for side, folder in (("base", builtin_base("tiny")), ("tuned", tmp_path / "merged")):
        # the harness by itself, on folders that it loads itself
        found = simple_evaluate(
            "hf",
            model_args={"pretrained": str(folder), "dtype": "float32", "device": "cpu"},
            tasks=tasks.split(","),
            apply_chat_template=True,
            log_samples=False,
        )["results"]
        assert scores["choice"][side] == found["choice"]["acc,none"]
        assert scores["likely"][side] == pytest.approx(found["likely"]["perplexity,none"], rel=1e-3)
    assert peft(["evaluate", str(run), "--tasks", tasks, "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "base" in printed
    assert "tuned" in printed
    # a run that was asked so is still a run of ours, which may be replaced
    again = tmp_path / "again"
    shutil.copytree(run, again)
    peftcli.train(run.parent / "skill.yaml", output=again, replace=True, overrides={"training.max_steps": 1})


@harness
@pytest.mark.parametrize(
    ("tasks", "code", "told"),
    [
        ("arc_eazy", 2, "did you mean arc_easy"),
        ("gone.yaml", 2, "there is no file gone.yaml"),
        (" , ", 2, "names no task"),
        ("arc_easy", 11, "the Hub cannot be reached"),
        ("broken.yaml", 3, "cannot read the task"),
    ],
)
def test_what_cannot_be_asked_is_told(
    tasks: str,
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "broken.yaml").write_text("task: broken\ndataset_path: json\noutput_type: nothing\n")
    assert peft(["evaluate", "anything", "--tasks", tasks]) == code
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


@pytest.mark.skipif(HERE, reason="the extra `eval` is here")
def test_without_the_harness_its_extra_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peft(["evaluate", str(tmp_path), "--tasks", "arc_easy"]) == 5
    assert "pip install 'peftcli[eval]'" in capsys.readouterr().err


def test_what_a_task_would_not_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--set", "seed=3"], ["other.yaml"]):
        assert peft(["evaluate", str(tmp_path), *more, "--tasks", "arc_easy"]) == 2
        assert "has no effect with --tasks" in capsys.readouterr().err
