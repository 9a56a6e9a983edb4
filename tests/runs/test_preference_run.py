"""Preference runs from recipe to adapter: the same however batches are cut, killed or resumed, and told by its report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from peftcli.jobs.evaluate import evaluate_adapter
from peftcli.jobs.merge import merge_adapter
from peftcli.reports.record import RunRecord
from peftcli.run import resume, train

COLOURS = ["red", "blue", "green", "black", "white", "brown", "pink", "grey"]


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Name colour {number}.",
            "chosen": f" It is {COLOURS[number % 8]}" + ", really" * (number % 3),
            "rejected": f" No, not {COLOURS[(3 * number + 1) % 8]}" + " at all" * (number % 4),
        }
        for number in range(count)
    ]


def verdicts(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": each["prompt"],
            "completion": each["chosen" if number % 2 else "rejected"],
            "label": bool(number % 2),
        }
        for number, each in enumerate(pairs(count))
    ]


def run(folder: Path, name: str, rows: list[dict[str, Any]], **sections: Any) -> tuple[RunRecord, Path]:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    document: dict[str, Any] = {
        "task": "preference",
        "model": "builtin:tiny",
        "data": {"train": "rows.jsonl", "validation": 6, "max_length": 128},
        "method": {"type": "lora", "r": 4},
        "training": {"max_steps": 4, "batch_size": 6, "micro_batch_size": 3, "learning_rate": 2e-3},
        "checkpoint": {"every": 2, "keep": 9, "best": None},
        "device": "cpu",
        "threads": 1,
    }
    for section, fields in sections.items():
        document[section] = {**document.get(section, {}), **fields}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return train(path, output=folder / name), folder / name


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def lines(folder: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in found if line["event"] == event]


@pytest.fixture(scope="module")
def dpo(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, Path]:
    return run(tmp_path_factory.mktemp("dpo"), "dpo", pairs(24))


def test_a_run_widens_the_margin_and_tells_both_sides(dpo: tuple[RunRecord, Path]) -> None:
    record, folder = dpo
    first, last = lines(folder, "eval")
    assert first["eval_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert first["eval_rewards_accuracies"] == 0.5, "the start prefers neither"
    assert last["eval_rewards_margins"] > 0.1
    steps = lines(folder, "train")
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    for name in ("rewards_chosen", "rewards_rejected", "rewards_margins", "rewards_accuracies", "logps_chosen"):
        assert all(name in step for step in steps)
    assert steps[-1]["rewards_margins"] == pytest.approx(steps[-1]["rewards_chosen"] - steps[-1]["rewards_rejected"])
    report = (folder / "report.html").read_text(encoding="utf-8").lower()
    for word in ("rewards margins", "rewards accuracies", "logps chosen", "logps rejected"):
        assert word in report
    assert record.evaluation is not None
    fell = record.evaluation.tuned["eval_logps_chosen"] < record.evaluation.base["eval_logps_chosen"] - 0.1
    assert fell == any("chosen answers have become less likely" in warning for warning in record.warnings)


def test_a_killed_run_ends_in_the_same_bytes(dpo: tuple[RunRecord, Path], tmp_path: Path, monkeypatch: Any) -> None:
    _, folder = dpo
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "checkpoints" / "step-00000004")
    shutil.rmtree(copy / "adapter")
    # what the start said is asked again
    monkeypatch.setenv("PEFTCLI_CACHE", str(tmp_path / "cache"))
    assert resume(copy).status == "completed"
    assert adapter(copy) == adapter(folder)
    # and a third time it is found beside the tokens, as it was
    assert list((tmp_path / "cache" / "references").iterdir())
    shutil.rmtree(copy / "checkpoints" / "step-00000004")
    monkeypatch.setattr("peftcli.tasks.preference.Preference.reference", None)
    resume(copy)
    assert adapter(copy) == adapter(folder)


def test_evaluating_and_merging_the_run(dpo: tuple[RunRecord, Path], tmp_path: Path) -> None:
    record, folder = dpo
    assert record.evaluation is not None
    again = evaluate_adapter(folder)
    assert again.base is not None
    for name, value in record.evaluation.tuned.items():
        assert again.tuned.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-5)
    assert merge_adapter(folder, output=tmp_path / "merged").max_difference < 1e-4


@pytest.mark.parametrize(
    ("loss", "rows"), [("dpo", pairs(24)), ("kto", verdicts(24)), ("orpo", pairs(24))], ids=["dpo", "kto", "orpo"]
)
def test_the_cut_of_a_batch_changes_nothing(loss: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    found = []
    for micro in (6, 1):
        _, folder = run(
            tmp_path,
            f"{loss}-{micro}",
            rows,
            preference={"loss": loss},
            # plain steps: an optimizer that divides by its second moment makes much of the last bits
            training={"micro_batch_size": micro, "optimizer": "sgd", "learning_rate": 0.05},
            data={"validation": 0},
        )
        found.append(load_file(folder / "adapter" / "adapter_model.safetensors"))
    # of what was trained from zero, so that the random start does not hide a difference
    moved = [name for name in found[0] if "lora_B" in name]
    one, other = (np.concatenate([each[name].ravel() for name in moved]).astype(np.float64) for each in found)
    assert np.linalg.norm(one) > 1e-3
    assert np.linalg.norm(one - other) <= 1e-6 * np.linalg.norm(one)
