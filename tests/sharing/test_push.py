"""`peft push` against a Hub on this machine: what goes there, what never does, and what stops it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from peftcli.cli.entry import run as peft
from tests.hub_stand_in import Hub

SENT = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "generation_config.json", "peftcli.json",
    "tokenizer.json", "tokenizer_config.json", "recipe.yaml", "recipe.lock", "report.html", "report.md",
}  # fmt: skip
ADAPTER = sorted(SENT - {"recipe.yaml", "recipe.lock", "report.html", "report.md"})
SECRET = "hf_" + "Ab3Cd5Ef7Gh9Jk1Lm" * 2


def push(*words: str) -> int:
    return peft(["push", "run", "me/tuned", *words])


def test_what_is_sent_and_what_never_is(work: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("notes.txt", "adapter/.env", "adapter/optimizer.bin", "data/rows.jsonl", "adapter/other.safetensors"):
        (work / "run" / name).write_text("mine")
    (work / "run" / "adapter" / "linked.bin").symlink_to(work / "rows.jsonl")
    assert push("--private", "--yes") == 0
    sent = hub.files("me/tuned")
    assert set(sent) == SENT
    assert hub.repos["me/tuned"].private
    for name in SENT - {"README.md", "recipe.yaml", "recipe.lock", "report.html", "report.md"}:
        assert sent[name] == (work / "run" / "adapter" / name).read_bytes(), name
    assert sent["recipe.lock"] == (work / "run" / "recipe.lock").read_bytes()
    shown = capsys.readouterr().err
    assert all(name in shown for name in SENT)
    # the one file of another tool's format that names the base as it was named
    base = json.loads(sent["adapter_config.json"])["base_model_name_or_path"]
    assert f"names the base by a folder of this machine: {base}" in shown
    for name in ("README.md", "recipe.yaml", "report.html", "report.md"):
        assert str(work.parent).encode() not in sent[name], name
        assert b"locked" not in sent[name], name


def test_it_reproduces_from_the_repository(work: Path, hub: Hub, tmp_path: Path) -> None:
    assert push("--yes") == 0
    there = tmp_path / "tuned"
    (there / "inputs").mkdir(parents=True)
    for name, data in hub.files("me/tuned").items():
        (there / name).write_bytes(data)
    shutil.copytree(work / "base", there / "inputs" / "base")
    shutil.copy(work / "rows.jsonl", there / "inputs" / "rows.jsonl")
    card = (there / "README.md").read_text()
    assert "peft reproduce ./tuned/recipe.yaml" in card
    shutil.rmtree(work / "base")
    assert peft(["reproduce", str(there / "recipe.yaml"), "--quiet"]) == 0
    assert peft(["generate", str(there), "--model", str(there / "inputs" / "base"), "--prompt", "hello"]) == 0


def test_the_card_of_a_repository(work: Path, hub: Hub) -> None:
    base = Path(json.loads((work / "run" / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"])
    try:
        (base / "README.md").write_text("---\nlicense: other\nlicense_name: own-1\n---\n# base\n")
        assert push("--yes", "--revision", "v1") == 0
    finally:
        (base / "README.md").unlink()
    text = hub.files("me/tuned", "v1")["README.md"].decode()
    card = ModelCard(text)
    assert (card.data["license"], card.data["license_name"]) == ("other", "own-1")
    record = json.loads((work / "run" / "run.json").read_text())
    results = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    assert results == {"loss": record["evaluation"]["tuned"]["eval_loss"]}
    for line in (
        "hf download me/tuned --revision v1 --local-dir tuned",
        'peft generate ./tuned --prompt "..." --base --model BASE_FOLDER\n',
        'PeftModel.from_pretrained(base, "./tuned")',
        'model.load_adapter("./tuned")',
        "vllm serve BASE_FOLDER --enable-lora --lora-modules tuned=./tuned",
        "| train | `rows.jsonl` | `messages` | 52 |",
    ):
        assert line in text, line
    assert "adapter_model.safetensors" not in hub.files("me/tuned")


def test_a_second_push_changes_only_what_changed(work: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert push("--yes") == 0
    assert push("--yes") == 0
    assert "has it all already" in capsys.readouterr().out
    repo, uploads = hub.repos["me/tuned"], list(hub.uploads)
    assert len(repo.commits) == 1
    card = work / "run" / "adapter" / "README.md"
    card.write_text(card.read_text() + "\nSeen by me.\n")
    assert push("--yes", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sent"] == ["README.md"]
    assert set(report["unchanged"]) == SENT - {"README.md"}
    assert repo.commits[1:] == [("main", ["README.md"])]
    assert hub.files("me/tuned")["README.md"].decode().endswith("\nSeen by me.\n")
    assert hub.uploads == uploads


def test_what_was_sent_is_not_sent_again(work: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.break_after = 1
    assert push("--yes") == 11
    assert len(hub.uploads) == 1
    assert not hub.repos["me/tuned"].commits
    hub.break_after, hub.refuse_commits = None, 1
    assert push("--yes") == 11
    assert len(hub.uploads) == 2
    assert push("--yes") == 0
    assert len(hub.uploads) == len(set(hub.uploads)) == 2
    assert set(hub.files("me/tuned")) == SENT


def test_interrupted_and_again(work: Path, hub: Hub) -> None:
    hub.hold_commit = threading.Event()
    command = [sys.executable, "-m", "peftcli", "push", "run", "me/tuned", "--yes"]
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": root}, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not any("/commit/" in request for request in hub.requests) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    hub.hold_commit.set()
    hub.hold_commit = None
    uploads = list(hub.uploads)
    assert push("--yes") == 0
    assert hub.uploads == uploads
    assert set(hub.files("me/tuned")) == SENT


def test_a_planted_secret_stops_it(work: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    run = work / "run"
    for name in ("recipe.yaml", "recipe.lock", "report.html", "report.md", *(f"adapter/{name}" for name in ADAPTER)):
        whole = (run / name).read_bytes()
        _plant(run / name)
        assert push("--yes") == 10, name
        said = capsys.readouterr().err
        assert SECRET not in said
        assert f"a Hugging Face token in {Path(name).name}" in said
        assert f"at run/{name}:" in said
        (run / name).write_bytes(whole)
    # no file of this run's: what is more than it wrote stops it too
    _plant(run / "adapter" / "chat_template.jinja")
    assert push("--yes") == 4
    assert not hub.requests


def _plant(path: Path) -> None:
    if path.suffix == ".json" or path.name == "recipe.lock":
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "seen": SECRET}))
    elif path.suffix == ".safetensors":
        from safetensors.numpy import load_file, save_file

        save_file(load_file(path), path, metadata={"format": "pt", "by": SECRET})
    else:
        path.write_text((path.read_text() if path.exists() else "") + f"\n# {SECRET}\n")


def test_other_kinds_of_secrets(work: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    card = work / "run" / "adapter" / "README.md"
    text = card.read_text()
    monkeypatch.setenv("MY_SERVICE_SECRET", "q7Jv2LxP9sWm4")
    for planted in (
        "AKIA" + "ABCDEFGHIJKLMNOP", "password: correct-horse-7", "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n",
        "q7Jv2LxP9sWm4", "Authorization: Bearer abcdef0123456789",
    ):  # fmt: skip
        card.write_text(f"{text}\n{planted}\n")
        assert push("--yes") == 10, planted
    card.write_text(f"{text}\nThe key: how to press a key; tokens: 4096; eos_token: '</s>'\n")
    assert push("--yes") == 0


def test_nobody_is_asked_where_nobody_is(work: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert push() == 2
    said = capsys.readouterr().err
    assert "adapter_model.safetensors" in said
    assert "--yes" in said
    assert not hub.repos


def test_what_the_hub_answers(
    work: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert push("--yes") == 0
    assert push("--yes", "--private") == 10
    assert "exists and is public" in capsys.readouterr().err
    assert peft(["push", "run", "a/b/c", "--yes"]) == 2
    assert peft(["push", "run/adapter", "bare", "--yes"]) == 0
    assert set(hub.files("me/bare")) == SENT
    shutil.copytree("run/adapter", "copied")
    assert peft(["push", "copied", "copied", "--yes"]) == 0
    assert set(hub.files("me/copied")) == {path.name for path in Path("copied").iterdir()}
    capsys.readouterr()
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    assert push("--yes") == 11
    assert "HF_TOKEN" in capsys.readouterr().err
    hub.close()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert push("--yes") == 11
    assert "cannot be reached" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert push("--yes") == 11
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err
