"""`peft generate` and `peft chat`, as a user runs them."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

import peftcli
from peftcli.cli.entry import run as peft
from peftcli.errors import NumericalError
from peftcli.evaluation.generate import require_finite_scores

RECIPE = """
model: builtin:tiny
data: {train: builtin:support, max_length: 256}
method: lora
training: {max_steps: 2, batch_size: 4, learning_rate: 5e-2}
generation: {max_new_tokens: 12}
threads: 1
"""
REQUESTS = [
    {"prompt": "Finn Shaw here. My BluCon stove is broken.", "id": 7},
    {"messages": [{"role": "user", "content": "Hello, I am Cora Cole."}]},
    {"prompt": "short"},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("answers")
    (folder / "r.yaml").write_text(RECIPE)
    peftcli.train(folder / "r.yaml", output=folder / "run")
    return str(folder / "run")


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in REQUESTS))
    return path


def test_a_file_of_prompts_is_answered_in_order_with_its_rows_kept(
    run: str, requests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    assert peft(["generate", run, "--input", str(requests), "--output", str(output), "--base"]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [{key: row[key] for key in given} for row, given in zip(rows, REQUESTS, strict=True)] == REQUESTS
    assert all(row["answer"] and row["base_answer"] for row in rows)
    assert any(row["answer"] != row["base_answer"] for row in rows)
    # one at a time as in a batch
    capsys.readouterr()
    assert peft(["generate", run, "--prompt", REQUESTS[0]["prompt"]]) == 0
    assert capsys.readouterr().out.strip() == rows[0]["answer"].strip()


def test_neither_the_input_nor_another_file_is_written_over(
    run: str, requests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = requests.read_text()
    assert peft(["generate", run, "--input", str(requests), "--output", str(requests)]) == 6
    assert "in.jsonl" in capsys.readouterr().err
    assert requests.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 2, "--prompt or --input"),
        (["--prompt", "a", "--input", "b"], 2, "--prompt or --input"),
        (["--prompt", "a", "--output", "b"], 2, "--output"),
        (["--input", "not-there.jsonl"], 3, "no such input file"),
        (["--prompt", "a", "--set", "training.max_steps=3"], 2, "generation"),
        (["--prompt", "word " * 3000], 3, "context"),
    ],
)
def test_what_cannot_be_answered_is_told(
    run: str, arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert peft(["generate", run, *arguments]) == code
    shown = capsys.readouterr().err
    assert told in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("end", ["", "\n", "/exit\n", "/quit\nnever said\n"])
def test_a_conversation_carries_on_and_ends(
    run: str, end: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello, I am Cora Cole.\nMy stove is broken.\n" + end))
    assert peft(["chat", run, "--base", "--json"]) == 0
    turns = json.loads(capsys.readouterr().out)["turns"]
    assert [turn["message"] for turn in turns] == ["Hello, I am Cora Cole.", "My stove is broken."]
    assert all(turn["answer"] and turn["base_answer"] for turn in turns)


def test_a_conversation_streams_both_models(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello.\n"))
    assert peft(["chat", run, "--base"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("base>  ")
    assert second.startswith("tuned> ")


# -- adapters that are out of range, tokens that the base lacks ------------------------------------------------------


@pytest.fixture
def bare(run: str, tmp_path: Path) -> Path:
    """A copy of the adapter, away from its run, which may be spoiled."""
    return Path(shutil.copytree(Path(run) / "adapter", tmp_path / "adapter"))


def huge_alpha(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1e308}))


def huge_tensors(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    changed = {name: (tensor.double() * 1e30).float() for name, tensor in tensors.items()}
    save_file(changed, adapter / "adapter_model.safetensors", metadata={"format": "pt"})


def huge_factor(adapter: Path) -> None:
    """Finite numbers, whose product is none."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    changed = {name: torch.full_like(tensor, 3e38) for name, tensor in tensors.items()}
    save_file(changed, adapter / "adapter_model.safetensors", metadata={"format": "pt"})


def stops(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 8 and a short message, without a word of an answer."""
    assert peft(arguments) == 8, arguments
    shown = capsys.readouterr()
    assert "not finite" in shown.err
    assert len(shown.err.strip().splitlines()) <= 5
    assert shown.out.strip() in ("", "tuned>")


@pytest.mark.parametrize("spoil", [huge_alpha, huge_tensors, huge_factor])
def test_no_text_is_written_from_scores_that_are_not_finite(
    bare: Path, spoil: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(bare)
    stops(["generate", str(bare), "--prompt", "Hello."], capsys)


def test_no_command_answers_from_scores_that_are_not_finite(
    bare: Path, tmp_path: Path, requests: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    huge_alpha(bare)
    output = tmp_path / "out.jsonl"
    stops(["generate", str(bare), "--prompt", "Hello.", "--set", "generation.do_sample=true"], capsys)
    stops(["generate", str(bare), "--input", str(requests), "--output", str(output)], capsys)
    assert not output.exists()
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello.\n"))
    stops(["chat", str(bare)], capsys)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.replace("{train: builtin:support,", "{train: builtin:support, validation: 8,"))
    stops(["evaluate", str(bare), str(recipe)], capsys)


def test_scores_that_rule_tokens_out_are_finite_enough() -> None:
    def check(*rows: list[float]) -> None:
        require_finite_scores(None, None, SimpleNamespace(logits=torch.tensor(rows)[:, None]))

    check([1.0, -torch.inf, 2.0])
    for wrong in ([1.0, torch.nan, -torch.inf], [torch.inf, 1.0, 1.0], [-torch.inf] * 3):
        with pytest.raises(NumericalError):
            check([0.0, 0.0, 0.0], wrong)


def test_tokens_that_the_base_lacks_are_told_before_anything_runs(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(bare)
    rows = len(tokenizer)
    tokenizer.add_tokens([f"<added-{number}>" for number in range(4000)])
    tokenizer.save_pretrained(bare)
    monkeypatch.setattr("sys.stdin", io.StringIO("<added-3999>\n"))
    for arguments in (
        ["generate", str(bare), "--prompt", "<added-3999>"],
        ["chat", str(bare)],
    ):
        assert peft(arguments) == 4, arguments
        shown = capsys.readouterr().err
        assert f"has {rows + 4000} tokens, the base embeds" in shown
        assert "Traceback" not in shown
