"""The examples that `--help` prints work in the order in which `peft --help` lists the commands, in one folder.

Each is run as it is printed. Only how much is trained and scored is less: by keys of the recipe that the first example
writes, and by the number in `max_steps=100`.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from peftcli.cli.app import COMMANDS
from peftcli.cli.entry import run as peft
from tests.hub_stand_in import Hub

LESS = (
    ("train: builtin:support,", "train: {path: builtin:support, rows: 64},"),
    ("max_steps: 200, batch_size: 16", "max_steps: 2, batch_size: 4"),
    ("rows: 200, every: 200", "rows: 4, every: 2, samples: 1"),
)
SHORT_ANSWERS = "generation: {max_new_tokens: 4}\nthreads: 1\n"


def printed_examples(name: str, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The command lines of the example in `peft NAME --help`, as words; a redirection of the shell is left out."""
    assert peft([name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.partition("Example:")[2].split())
    return [shlex.split(line.partition(" > ")[0]) for line in text.split(" && ")]


def make_it_quick(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    for written, less in LESS:
        assert text.count(written) == 1, (written, text)
        text = text.replace(written, less)
    recipe.write_text(text + SHORT_ANSWERS, encoding="utf-8")


def test_the_examples_work_in_the_printed_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hub: Hub
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = set()
    for name in COMMANDS:
        for example in printed_examples(name, capsys):
            assert example[0] == "peft"
            words = [re.sub(r"^(training\.max_steps)=100$", r"\1=2", word) for word in example[1:]]
            monkeypatch.setattr(sys, "stdin", io.StringIO("My parcel is late.\n"))
            assert peft(words) == 0, (example, capsys.readouterr().err)
            ran.add(words[0])
            if words[0] == "init":
                make_it_quick(tmp_path / "quickstart.yaml")
    assert len(ran) >= 20, ran
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "quickstart.lock").is_file()
