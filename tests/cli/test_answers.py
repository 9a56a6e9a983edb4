"""`peft generate` and `peft chat`, as a user runs them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

import peftcli
from peftcli.cli.entry import run as peft

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
