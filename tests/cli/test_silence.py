"""What commands print, and nothing else: no bar, warning or advice of a library, on stdout or stderr.

The commands run in processes of their own, with an environment as a user has it: what our tests set to keep libraries
quiet is taken out. Everything that is written to the descriptors counts, whoever writes it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import peftcli
from peftcli.cli.app import COMMANDS
from peftcli.cli.starters import starter_names
from tests.hub_stand_in import Hub

DRIVER = """
import json, os, sys, tempfile
from peftcli.cli.entry import main

def caught(arguments):
    kept, files = [os.dup(1), os.dup(2)], [tempfile.TemporaryFile(), tempfile.TemporaryFile()]
    for number, file in enumerate(files, start=1):
        os.dup2(file.fileno(), number)
    try:
        main(arguments)
    except SystemExit as error:
        code = error.code
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)
    texts = []
    for file in files:
        file.seek(0)
        texts.append(file.read().decode())
    return code, *texts

for line in json.loads(sys.argv[1]):
    print(json.dumps(caught(line)), flush=True)
"""
QUIETENING = re.compile(
    "TRANSFORMERS_|HF_HUB_(?!OFFLINE)|TOKENIZERS_|TQDM_|PYTHONWARNINGS|DATASETS_|BITSANDBYTES_|PYTEST_"
)


@dataclass(frozen=True)
class Ended:
    arguments: list[str]
    code: int
    out: str
    err: str


def in_one_process(commands: list[list[str]], folder: Path) -> list[Ended]:
    """Each command after the other, as `peft` runs it, in a process that is as noisy as libraries are by themselves."""
    paths = [str(Path(peftcli.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    loud = {name: value for name, value in os.environ.items() if not QUIETENING.match(name)}
    loud |= {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands)],
        capture_output=True, text=True, check=True, cwd=folder, env=loud, input="hello\n",
    )  # fmt: skip
    assert not done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(commands)
    return [Ended(arguments, *parts) for arguments, parts in zip(commands, found, strict=True)]


# -- the starters ----------------------------------------------------------------------------------------------------

OURS = {
    "init": r"wrote \S+|next: peft train \S+",
    "validate": r"\S+ is valid",
    "plan": r"[\w-]+: lora on builtin:tiny \([\w-]+\)||(  )?(data|validation|parameters|steps|rate|device|memory|disk"
    r"|process|base|adapter|gradient|optimizer|activation|loss|padding|framework|workspace|evaluation|chosen)s? {2,}\S.*"
    r"| +evaluation takes about .*",
    "train": r"\S+: every stage passed in .*",
}
"""What a line of each command's output looks like."""
STAGE = r"ok  (tiny base|data|attach|train|evaluate|save|reload|merge) .*"


FEW = ["chat", "sequence-classification"]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(FEW, id="few"),
        pytest.param([name for name in starter_names() if name not in FEW], id="others", marks=pytest.mark.slow),
    ],
)
def test_starters_from_init_to_smoke_without_a_stray_line(names: list[str], tmp_path: Path) -> None:
    commands = [
        words
        for name in names
        for words in (["init", name], ["validate", f"{name}.yaml"], ["plan", f"{name}.yaml"], ["train", f"{name}.yaml"])
    ]
    commands = [[*words, "--smoke"] if words[0] == "train" else words for words in commands]
    for ended in in_one_process(commands, tmp_path):
        assert ended.code == 0, ended
        stray = [line for line in ended.out.splitlines() if not re.fullmatch(OURS[ended.arguments[0]], line)]
        stages = ended.err.splitlines() if ended.arguments[0] == "train" else []
        stray += [line for line in stages if not re.fullmatch(STAGE, line)]
        assert not stray, (ended.arguments, stray)
        assert ended.err == "" or stages, ended
        assert ended.out.strip(), "a command that says nothing would pass too"
        assert "\r" not in ended.out + ended.err, ended.arguments


# -- --quiet -----------------------------------------------------------------------------------------------------------

CALLS: dict[str, list[str]] = {
    "init": ["quickstart"],
    "validate": ["tiny.yaml"],
    "plan": ["tiny.yaml"],
    "data": ["tiny.yaml", "--rows", "1"],
    "train": ["tiny.yaml", "--output", "fresh"],
    "resume": ["cut"],
    "evaluate": ["run"],
    "generate": ["run", "--prompt", "hello", "--base"],
    "chat": ["run"],
    "merge": ["run", "--output", "merged"],
    "export": ["run", "--to", "peft", "--output", "exported"],
    "serve": ["run"],
    "push": ["run", "me/run", "--yes"],
    "convert": ["run", "--to", "lora", "--output", "converted"],
    "combine": ["run", "other", "--weights", "1,1", "--how", "cat", "--output", "combined"],
    "inspect": ["run"],
    "compare": ["tiny.yaml", "--methods", "lora,ia3", "--budget", "1step", "--output", "compared"],
    "migrate": ["run/adapter/adapter_config.json"],
    "diff": ["run", "other"],
    "report": ["run"],
    "lock": ["run"],
    "reproduce": ["tiny.yaml", "--steps", "2"],
    "methods": ["lora"],
    "explain": ["training.epochs"],
    "schema": [],
    "doctor": [],
}
MORE = [
    ["train", "tiny.yaml", "--smoke"],
    ["report", "run", "other"],
    ["generate", "merged", "--prompt", "hello"],
    ["evaluate", "merged", "tiny.yaml"],
    ["inspect", "merged"],
    ["generate", "run", "--input", "asked.jsonl", "--output", "answered.jsonl"],
]
"""Other ways of a command."""


@pytest.fixture
def ready(work: Path) -> Path:
    """The run again under another name, one that was cut short, and prompts in a file."""
    shutil.copytree("run", "other")
    shutil.copytree("run", "cut")
    for name in ("run.json", "recipe.lock"):
        Path("cut", name).unlink()
    Path("asked.jsonl").write_text('{"prompt": "hello"}\n')
    return work


def test_quiet_is_quiet_for_every_command(ready: Path, hub: Hub) -> None:
    assert CALLS.keys() == COMMANDS.keys(), "each command of the table, and no other"
    commands = [[name, *rest] for name, rest in CALLS.items()] + MORE
    for ended in in_one_process([[*words, "--quiet"] for words in commands], ready):
        assert ended.code == 0, ended
        assert ended.err == "", ended.arguments
        assert "\r" not in ended.out, ended.arguments
        assert ended.out.strip() or "--output" in ended.arguments, "results are no progress"
