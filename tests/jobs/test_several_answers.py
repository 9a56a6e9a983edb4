"""Several answers to each prompt, drawn by seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftcli.cli.entry import run as peft

DRAWN = ["--set", "generation.do_sample=true", "--set", "generation.num_return_sequences=3"]
SHORT = ["--set", "generation.max_new_tokens=8"]


def test_several_answers_by_seed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("asked.jsonl").write_text('{"prompt": "hello", "id": 1}\n{"prompt": "my parcel is late", "id": 2}\n')
    found = []
    for seed, name in (("1", "a"), ("1", "b"), ("2", "c")):
        words = ["generate", "run", "--input", "asked.jsonl", "--output", name, *DRAWN, *SHORT, "--set", f"seed={seed}"]
        assert peft(words) == 0, capsys.readouterr().err
        found.append([json.loads(line) for line in Path(name).read_text().splitlines()])
    assert found[0] == found[1]
    assert found[0] != found[2]
    for row in found[0]:
        assert row["id"] in (1, 2)
        assert len(row["answers"]) == 3
        assert row["answer"] == row["answers"][0]
        assert len(set(row["answers"])) > 1
    capsys.readouterr()
    assert peft(["generate", "run", "--prompt", "hello", "--base", "--json", *DRAWN, *SHORT]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert len(answer["answers"]) == len(answer["base_answers"]) == 3
    assert answer["base_answer"] == answer["base_answers"][0]
    assert peft(["generate", "run", "--prompt", "hello", *DRAWN[2:], *SHORT]) == 0
    assert "generation.num_return_sequences has no effect" in capsys.readouterr().err
