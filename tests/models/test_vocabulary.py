"""A base whose tokenizer has more tokens than it embeds: an error, but for places of images that its text never holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from peftcli.cli.entry import run as peft
from peftcli.data import stream
from peftcli.models.builtin import builtin_base

RECIPE = """\
model: ./base
data: {train: rows.jsonl, max_length: 64}
method: {type: lora, r: 2, target_modules: [q_proj]}
training: {max_steps: 1, batch_size: 2}
evaluation: {samples: 0}
threads: 1
"""
PLACE = "<image_soft_token>"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As Gemma 3 with 1B has it: one token behind the table, which the tokenizer's configuration calls `image_token`."""
    base = Path(shutil.copytree(builtin_base("tiny"), tmp_path / "base"))
    document = json.loads((base / "tokenizer.json").read_text())
    rows = json.loads((base / "config.json").read_text())["vocab_size"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document["added_tokens"].append({"id": rows, "content": PLACE, **flags, "special": True})
    (base / "tokenizer.json").write_text(json.dumps(document))
    (tmp_path / "r.yaml").write_text(RECIPE)
    write_rows(tmp_path, "A plain answer.")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_rows(folder: Path, text: str) -> None:
    rows = [{"prompt": f"Question {number}?", "completion": text if number == 2 else "Yes."} for number in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def name_the_place(base: Path) -> None:
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_token": PLACE}))


def test_a_place_for_images_is_no_fault_of_a_text_model(work: Path) -> None:
    name_the_place(work / "base")
    assert peft(["train", "r.yaml", "--output", "run", "--quiet"]) == 0
    assert peft(["merge", "run", "--output", "merged", "--quiet"]) == 0
    assert (work / "merged" / "tokenizer.json").read_bytes() == (work / "base" / "tokenizer.json").read_bytes()


def test_a_row_that_holds_it_is_told(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name_the_place(work / "base")
    write_rows(work, f"See {PLACE}.")
    assert peft(["plan", "r.yaml"]) == 3
    said = capsys.readouterr().err
    assert f"the row holds '{PLACE}', which this base does not embed" in said
    assert "rows.jsonl:3" in said


def test_a_token_of_text_without_a_row_is_an_error(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peft(["plan", "r.yaml"]) == 4
    assert "the tokenizer has 1601 tokens, the base embeds 1600" in capsys.readouterr().err


@pytest.mark.parametrize("where", [2, 40])
def test_a_streamed_row_that_holds_it_is_told(
    work: Path, where: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In what `plan` looks at, and in a block that is read while training."""
    monkeypatch.setattr(stream, "BLOCK_ROWS", 16)
    name_the_place(work / "base")
    streamed = RECIPE.replace("max_length: 64", "max_length: 64, streaming: true").replace(
        "max_steps: 1", "max_steps: 30"
    )
    (work / "r.yaml").write_text(streamed.replace("evaluation: {samples: 0}\n", ""))
    rows = [{"prompt": f"Q {n}?", "completion": f"See {PLACE}." if n == where else "Yes."} for n in range(80)]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert peft(["plan", "r.yaml"]) == (3 if where < 16 else 0)
    capsys.readouterr()
    assert peft(["train", "r.yaml", "--output", "run", "--quiet"]) == 3
    said = capsys.readouterr().err
    assert f"the row holds '{PLACE}', which this base does not embed" in said
    assert f"rows.jsonl:{where + 1}" in said
