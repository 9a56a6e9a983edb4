"""Rewards of pairs: the loss of TRL's own trainer, and a model that transformers asks with the same answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from peftcli.cli.entry import run as peft
from peftcli.jobs.evaluate import evaluate_adapter
from peftcli.jobs.merge import merge_adapter
from peftcli.recipe import load_recipe
from peftcli.run import resume, train
from peftcli.tasks.preference_config import RewardConfig
from peftcli.tasks.preferences import granting

KNOWN: dict[str, Any] = json.loads((Path(__file__).parent / "trl" / "losses.json").read_text(encoding="utf-8"))
WORDS = ["red", "blue", "green", "black", "white", "brown"]


@pytest.mark.parametrize("coefficient", sorted(KNOWN["rewards"]))
def test_the_loss_and_its_gradient_are_those_of_trl(coefficient: str) -> None:
    scores = nn.Parameter(torch.tensor(KNOWN["scores"]))
    count = len(scores)
    batch = {
        "row": torch.arange(count).repeat(2),
        "side": torch.arange(2).repeat_interleave(count),
        "present": torch.ones(count, 2, dtype=torch.bool),
    }
    loss = granting.loss(scores.T.reshape(-1, 1), batch, RewardConfig(center_rewards_coefficient=float(coefficient)))
    (loss.total / loss.weight).backward()
    known = KNOWN["rewards"][coefficient]
    assert float(loss.total.detach()) / loss.weight == pytest.approx(known["loss"], rel=1e-5)
    assert scores.grad is not None
    assert torch.allclose(scores.grad, torch.tensor(known["gradient"]), rtol=1e-5, atol=1e-6)


def rows(count: int) -> list[dict[str, str]]:
    return [
        {
            "prompt": f"Say {WORDS[number % 6]} {number}.",
            "chosen": f" {WORDS[number % 6]}" + " please" * (number % 3),
            "rejected": f" {WORDS[(number + 1) % 6]} no" + " no" * (number % 2),
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows(36))), encoding="utf-8")
    document = {
        "task": "reward",
        "model": "builtin:tiny",
        "data": {"train": "rows.jsonl", "validation": 6, "max_length": 64},
        "method": {"type": "lora", "r": 4},
        "training": {"max_steps": 8, "batch_size": 10, "micro_batch_size": 5, "learning_rate": 5e-3},
        "checkpoint": {"every": 4, "keep": 9, "best": None},
        "device": "cpu",
        "threads": 1,
    }
    (folder / "r.yaml").write_text(json.dumps(document), encoding="utf-8")
    train(folder / "r.yaml", output=folder / "run")
    return folder / "run"


def test_a_run_learns_what_is_better(trained: Path) -> None:
    record = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    base, tuned = record["evaluation"]["base"], record["evaluation"]["tuned"]
    assert tuned["eval_rewards_margins"] > base["eval_rewards_margins"] + 0.5
    assert tuned["eval_rewards_accuracies"] == 1.0
    again = evaluate_adapter(trained)
    for name, value in tuned.items():
        assert again.tuned.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-5)


def test_a_killed_run_ends_in_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "checkpoints" / "step-00000008")
    resume(copy)
    name = "adapter/adapter_model.safetensors"
    assert (copy / name).read_bytes() == (trained / name).read_bytes()


def test_a_text_alone_is_not_what_it_reads(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the run, out of it, and merged: a number for a text without its prompt would mean nothing."""
    import shutil

    shutil.copytree(trained / "adapter", tmp_path / "adapter")
    merge_adapter(trained, output=tmp_path / "merged")
    for path in (trained, tmp_path / "adapter", tmp_path / "merged"):
        assert peft(["generate", str(path), "--prompt", "A good answer."]) == 4, path
        shown = capsys.readouterr()
        assert "not trained to read a text alone" in shown.err
        assert not shown.out


def test_transformers_grants_what_the_run_measured(trained: Path, tmp_path: Path) -> None:
    merge_adapter(trained, output=tmp_path / "merged")
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert model.config.num_labels == 1
    assert any("score" in name for name in load_file(tmp_path / "merged" / "model.safetensors"))
    recipe = load_recipe(trained / "recipe.yaml", ())
    from peftcli.planning.plan import prepare_run

    store = prepare_run(recipe).data.validation
    assert store is not None
    margins = []
    for row in store:
        granted = []
        for part in (1, 2):
            ids = row.input_ids[(row.parts == 0) | (row.parts == part)].tolist()
            # padded, as a batch of any rows is
            padded = torch.tensor([[*ids, *[model.config.pad_token_id] * 3], [*ids, *[model.config.pad_token_id] * 3]])
            mask = torch.tensor([[1] * len(ids) + [0] * 3] * 2)
            with torch.no_grad():
                granted.append(float(model(padded, attention_mask=mask).logits[0, 0]))
        margins.append(granted[0] - granted[1])
    assert tokenizer.pad_token_id == model.config.pad_token_id
    record = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    assert np.mean(margins) == pytest.approx(record["evaluation"]["tuned"]["eval_rewards_margins"], abs=1e-4)
