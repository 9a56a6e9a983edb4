"""A quick start: the commands that only read recipes and classes import nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftcli.cli.app import COMMANDS

HEAVY = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "numpy",
    "pandas",
    "pyarrow",
    "rich",
    "jinja2",
    "safetensors",
    "huggingface_hub",
)
RECIPE = """\
model: builtin:tiny
data: {train: builtin:support, validation: 0.1}
method: lora
evaluation: {metrics: [loss, exact_match]}
"""
PROBE = """
import sys
from peftcli.cli.entry import run
lines = [line.split("\\t") for line in sys.stdin.read().splitlines()]
for line in lines:
    code = run(line)
    loaded = sorted(name for name in {heavy!r} if name in sys.modules)
    print(code, ",".join(loaded), " ".join(line), sep="|", file=sys.stderr)
"""


def probed(commands: list[list[str]]) -> list[tuple[int, str, str]]:
    """Runs commands one after the other in one fresh process; what each left loaded."""
    script = PROBE.replace("{heavy!r}", repr(HEAVY))
    text = "\n".join("\t".join(command) for command in commands)
    found = subprocess.run([sys.executable, "-c", script], input=text, capture_output=True, text=True, check=True)
    rows = [line.split("|") for line in found.stderr.splitlines() if line.count("|") == 2]
    return [(int(code), loaded, command) for code, loaded, command in rows]


def test_help_of_every_command_imports_nothing_heavy() -> None:
    rows = probed([["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
    assert len(rows) == len(COMMANDS) + 2
    assert [row for row in rows if row[:2] != (0, "")] == []


def test_commands_on_recipes_import_nothing_heavy(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(RECIPE)
    bad.write_text(RECIPE + "seed: x\ntraning: {}\n")
    commands = [
        ["validate", str(good)],
        ["validate", str(bad)],
        ["validate", str(good), "--set", "method=bottleneck", "--json"],
        ["schema"],
        ["methods"],
        ["methods", "lora"],
        ["explain", "method.r"],
        ["explain", "4"],
        ["init", "--list"],
        ["init", "quickstart", "--output", str(tmp_path / "q.yaml")],
        ["nonsense"],
        ["train"],
    ]
    rows = probed(commands)
    assert [row[0] for row in rows] == [0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2]
    assert [row for row in rows if row[1]] == []


def test_a_bad_recipe_is_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(RECIPE + "seed: x\n")
    output = str(tmp_path / "run")
    rows = probed([["train", str(bad), "--output", output], ["plan", str(bad)], ["data", str(bad)]])
    assert [row[:2] for row in rows] == [(2, "")] * 3
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("arguments", "limit"), [(["--help"], 0.4), (["validate", "r.yaml"], 0.7)])
def test_cpu_time_of_a_start(tmp_path: Path, arguments: list[str], limit: float) -> None:
    """CPU seconds, which other load on the machine does not stretch; the least of three."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "peftcli", *arguments], check=True, capture_output=True, cwd=tmp_path)
        after = os.times()
        seconds.append(after.children_user - before.children_user + after.children_system - before.children_system)
    assert min(seconds) < limit
