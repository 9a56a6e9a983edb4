"""The README's commands, run as they stand on two hundred rows of one's own."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from peftcli.cli.entry import run as peft
from peftcli.data.builtin import builtin_data

README = Path(__file__).parents[1] / "README.md"


def own_rows_commands() -> list[list[str]]:
    text = README.read_text(encoding="utf-8")
    block = re.search(r"## Train on your own rows.*?```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block.group(1).splitlines() if line.strip()]


def test_own_rows_to_a_merged_model_in_six_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = own_rows_commands()
    assert len(commands) <= 6
    monkeypatch.chdir(tmp_path)
    rows = builtin_data("support").read_text(encoding="utf-8").splitlines()[:200]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for number, command in enumerate(commands):
        assert command[0] == "peft"
        assert peft(command[1:]) == 0, (command, capsys.readouterr().err)
        if number == 0:
            recipe = tmp_path / "mine.yaml"
            assert "rows.jsonl" in recipe.read_text()
            recipe.write_text(recipe.read_text() + "threads: 1\n")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    assert "trained" in capsys.readouterr().out


def test_the_shortest_recipe_is_valid(tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    block = re.search(r"The shortest recipe that trains:\n\n```yaml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    (tmp_path / "shortest.yaml").write_text(block.group(1))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "support.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    assert peft(["validate", str(tmp_path / "shortest.yaml")]) == 0


def test_every_target_named_exists() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README.read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= targets, named - targets


def guide() -> str:
    """From the plan of the house to the end of the guide."""
    return README.read_text(encoding="utf-8").partition("### The house")[2]


def test_every_file_that_the_guide_names_exists() -> None:
    root = README.parent
    named = set(re.findall(r"\b(?:peftcli|tests|recipes)/[\w./<>-]*\w", guide().replace("NAME", "hra")))
    assert len(named) > 10
    places = [re.sub(r"/<name.*|\.$", "", name) for name in named]
    missing = [place for place in places if not (root / place).exists()]
    assert not missing


def test_everything_that_the_guide_tells_to_subclass_or_write_is_there() -> None:
    places = [path for room in ("peftcli", "tests") for path in (README.parent / room).rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in places)
    words = set(re.findall(r"`([A-Z]\w+)(?:\(\.\.\.\))?`", guide())) - {"NAME", "PEFTCLI_GROUND"}
    words |= set(re.findall(r"`([a-z]\w+)(?:\(x\)|=False)?`", guide().partition("### Add a method")[2]))
    known = {"oft", "hra", "v", "pass"}
    unknown = [
        word for word in words - known if not re.search(rf"(?:class|def) {word}\b|^\s*{word}\b.*[:=]", code, re.M)
    ]
    assert not unknown


def test_the_figures_of_scaling_are_those_of_the_script() -> None:
    path = README.parent / "tests" / "benchmarks" / "scaling.py"
    said = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True).stdout
    assert len(said.splitlines()) == 14
    assert said.strip() in README.read_text(encoding="utf-8")
