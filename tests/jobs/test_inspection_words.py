"""What `peft inspect` prints: words of YAML, a table of scores, nothing as Python would repeat it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import peftcli
from peftcli.cli.entry import run as peft
from peftcli.models.builtin import builtin_base


def test_a_run_and_a_model_are_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text(
        "model: builtin:tiny\ndata: {train: {path: builtin:chat, rows: 12}, validation: 4, max_length: 128}\n"
        "method: {type: lora, r: 2, target_modules: [q_proj, v_proj]}\ntraining: {max_steps: 1, batch_size: 2}\n"
        "evaluation: {samples: 0}\nthreads: 1\n"
    )
    peftcli.train(tmp_path / "r.yaml", output=tmp_path / "run")
    shown = ""
    for path in (tmp_path / "run", tmp_path / "run" / "adapter", builtin_base("tiny")):
        assert peft(["inspect", str(path)]) == 0
        shown += capsys.readouterr().out
    assert not re.search(r"\b(None|True|False)\b|['\"{}]", shown), shown
    for line in ("target_modules           [q_proj, v_proj]", "inference_mode           true", "tied_embeddings  true"):
        assert line in shown
    assert re.search(r"^metric +base +95 % +tuned +95 % +change$", shown, re.MULTILINE)
