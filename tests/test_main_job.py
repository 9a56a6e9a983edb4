"""The main job on what the package ships: recipe in, adapter, metrics, report and verified merge out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import peftcli
from peftcli import adapters
from peftcli.cli.entry import run as peft
from peftcli.errors import StorageError
from peftcli.training.interfaces import Batch

RECIPE = """
model: builtin:tiny
data: {train: builtin:support, validation: 24, max_length: 256}
method: {type: METHOD}
training: {max_steps: 6, batch_size: 8, micro_batch_size: 4, learning_rate: 2e-3}
evaluation: {every: 3, samples: 2, rows: 16}
checkpoint: {every: 4}
threads: 1
"""


def write_recipe(folder: Path, method: str = "lora", name: str = "support.yaml") -> Path:
    path = folder / name
    path.write_text(RECIPE.replace("METHOD", method), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of LoRA on the built-in base."""
    folder = tmp_path_factory.mktemp("main")
    peftcli.train(write_recipe(folder), output=folder / "run")
    return folder / "run"


def adapter_bytes(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_the_run_folder_is_complete(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {
        "recipe.yaml",
        "metrics.jsonl",
        "run.json",
        "report.html",
        "report.md",
        "adapter",
        "data",
        "checkpoints",
    } <= names
    adapter = {path.name for path in (trained / "adapter").iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "README.md",
        "peftcli.json",
    } <= adapter
    record = json.loads((trained / "run.json").read_text())
    assert record["status"] == "completed"
    assert record["steps"] == 6
    assert record["evaluation"]["tuned"]["eval_loss"] < record["evaluation"]["base"]["eval_loss"]
    assert record["tokens"] > record["trained_tokens"] > 0
    assert record["peak_memory_bytes"] >= record["model_memory_bytes"] > 0
    assert record["parameters"]["trainable"] == sum(t.numel() for t in load_file(adapter_file(trained)).values())
    assert record["adapter_bytes"] == adapter_file(trained).stat().st_size


def adapter_file(run: Path) -> Path:
    return run / "adapter" / "adapter_model.safetensors"


def test_metrics_carry_what_the_contract_says(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["event"] == "train"]
    assert [line["step"] for line in train] == list(range(1, 7))
    assert all(
        {"loss", "learning_rate", "grad_norm", "tokens", "trained_tokens", "seconds"} <= line.keys() for line in train
    )
    evals = {line["step"]: line for line in lines if line["event"] == "eval"}
    assert set(evals) == {0, 3, 6}
    assert all("eval_loss" in line for line in evals.values())


def test_the_same_recipe_gives_the_same_bytes_and_its_resolved_form_repeats_it(trained: Path, tmp_path: Path) -> None:
    peftcli.train(write_recipe(tmp_path), output=tmp_path / "again")
    peftcli.train(trained / "recipe.yaml", output=tmp_path / "resolved")
    assert adapter_bytes(tmp_path / "again") == adapter_bytes(trained)
    assert adapter_bytes(tmp_path / "resolved") == adapter_bytes(trained)


def test_the_command_line_gives_the_same_adapter_as_python(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert peft(["train", str(write_recipe(tmp_path)), "--output", str(tmp_path / "run"), "--quiet", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["status"] == "completed"
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(trained)


def test_a_run_that_exists_is_never_overwritten(trained: Path, tmp_path: Path) -> None:
    before = adapter_bytes(trained)
    with pytest.raises(StorageError, match="holds a run"):
        peftcli.train(write_recipe(tmp_path), output=trained)
    assert adapter_bytes(trained) == before


def test_an_interrupted_run_ends_in_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    for name in ("adapter", "run.json", "report.html"):
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(copy / "checkpoints" / "step-00000006")
    assert peftcli.resume(copy).status == "completed"
    assert adapter_bytes(copy) == adapter_bytes(trained)


def test_a_copied_run_evaluates_and_merges_with_the_base_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(trained, copy)
    assert peft(["evaluate", str(copy), "--model", "builtin:tiny", "--json", "--quiet"]) == 0
    scores = json.loads(capsys.readouterr().out)
    record = json.loads((trained / "run.json").read_text())
    assert scores["tuned"]["eval_loss"] == pytest.approx(record["evaluation"]["tuned"]["eval_loss"], abs=1e-6)
    assert (
        peft(
            ["merge", str(copy / "adapter"), "--model", "builtin:tiny", "--output", str(tmp_path / "merged"), "--json"]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["max_difference"] <= report["tolerance"] < 1e-3 * report["adapter_effect"]
    assert report["adapter_effect"] > 1e-2, "the adapter changes nothing, so the merge proves nothing"


def test_the_merged_model_is_plain(trained: Path, tmp_path: Path) -> None:
    assert (
        peft(["merge", str(trained), "--output", str(tmp_path / "merged"), "--quiet", "--max-shard-size", "1MB"]) == 0
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1, "it was to be sharded"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(peft_base(), dtype=torch.float32).eval()
    adapters.load(base, trained / "adapter")
    ids = torch.tensor([tokenizer("Hi, my name is Ada and I ordered a lamp.")["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, base(ids).logits, atol=1e-4)
    assert tokenizer.chat_template
    assert merged.generation_config.eos_token_id == tokenizer.eos_token_id


def peft_base() -> Path:
    from peftcli.models.builtin import builtin_base

    return builtin_base("tiny")


def test_a_merge_beyond_tolerance_writes_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from peftcli.jobs import merge

    monkeypatch.setattr(merge, "FLOOR", 0.0)
    monkeypatch.setattr(merge, "NOISE_FACTOR", 1e-6)
    assert peft(["merge", str(trained), "--output", str(tmp_path / "merged"), "--quiet"]) == 10
    assert "drifted most" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_method_that_cannot_merge_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peftcli.train(write_recipe(tmp_path, "bottleneck"), output=tmp_path / "run", overrides={"training.max_steps": 2})
    assert peft(["merge", str(tmp_path / "run"), "--output", str(tmp_path / "merged"), "--quiet"]) == 4
    assert "non-linearity" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_how_a_batch_is_cut_changes_nothing(method: str, tmp_path: Path) -> None:
    """SGD, float32, uneven lengths, masked prompts: 8x1, 4x2 and 1x8 give the same adapter."""
    found = {}
    for micro in (1, 2, 8):
        overrides = {
            "training.optimizer": "sgd",
            "training.learning_rate": 0.05,
            "training.micro_batch_size": micro,
            "evaluation.samples": 0,
        }
        peftcli.train(write_recipe(tmp_path, method), output=tmp_path / f"cut-{micro}", overrides=overrides)
        found[micro] = load_file(adapter_file(tmp_path / f"cut-{micro}"))
    for micro in (2, 8):
        for name, tensor in found[1].items():
            assert tensor.shape == found[micro][name].shape
        one = torch.cat([tensor.flatten() for tensor in found[1].values()])
        other = torch.cat([found[micro][name].flatten() for name in found[1]])
        assert float((one - other).norm() / one.norm()) <= 1e-6, micro


def test_plain_torch_loop_over_attached_model() -> None:
    model = AutoModelForCausalLM.from_pretrained(peft_base(), dtype=torch.float32)
    found = adapters.attach(model, {"type": "lora", "r": 8})
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert found.trainable == sum(p.numel() for p in trainable)
    batch: Batch = {"input_ids": torch.arange(20, 60).reshape(2, 20), "labels": torch.arange(20, 60).reshape(2, 20)}
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert np.all(np.isfinite(losses))


BAD: Sequence[tuple[str, dict[str, str | bytes], int, list[str]]] = [
    ("broken JSON line", {"rows.jsonl": '{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n'}, 3, ["rows.jsonl:2"]),
    ("not UTF-8", {"rows.jsonl": b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xff"}\n'}, 3, ["rows.jsonl:2"]),
    (
        "null text",
        {"rows.jsonl": '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": null}\n'},
        3,
        [":2"],
    ),
    ("empty file", {"rows.jsonl": ""}, 3, ["rows.jsonl"]),
    ("missing data", {}, 3, ["rows.jsonl"]),
]


@pytest.mark.parametrize(("label", "contents", "code", "said"), BAD, ids=[case[0] for case in BAD])
def test_bad_data_is_told_by_file_and_line(
    label: str,
    contents: dict[str, str | bytes],
    code: int,
    said: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: builtin:tiny\ndata: ./rows.jsonl\nmethod: lora\n")
    assert peft(["train", str(recipe), "--output", str(tmp_path / "run"), "--quiet"]) == code
    printed = capsys.readouterr().err
    assert all(text in printed for text in said), printed
    assert "Traceback" not in printed


def test_bad_targets_models_and_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path)
    targets = 'method.target_modules=["q_proj", "k_porj"]'
    assert peft(["train", str(recipe), "--set", targets, "--output", str(tmp_path / "a"), "--quiet"]) == 4
    printed = capsys.readouterr().err
    assert "k_porj" in printed
    assert "k_proj" in printed
    assert peft(["train", str(recipe), "--set", "model=./nowhere", "--output", str(tmp_path / "b"), "--quiet"]) == 4
    printed = capsys.readouterr().err
    assert "nowhere" in printed
    assert "repo" not in printed.lower()
    (tmp_path / "file").write_text("here")
    assert peft(["train", str(recipe), "--output", str(tmp_path / "file"), "--quiet"]) == 6
    assert "Traceback" not in capsys.readouterr().err
