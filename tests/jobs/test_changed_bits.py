"""One changed bit in any file that a command reads: it is noticed, or the answer is what it was.

A case is a file and a command. The command runs on the file as it was, then with one bit (of a text: one digit, so that
it stays well formed) changed. It must fail with an exit code of ours, or say that something differs, or give the same
answer to the byte.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peftcli.cli.entry import run as peft
from peftcli.data.builtin import builtin_data
from peftcli.models.builtin import builtin_base

RECIPE = """\
model: {base: ./base, chat_template: ./t.jinja}
data: {train: ./rows.jsonl, validation: ./held.jsonl, max_length: 160, checks: {leakage: warn}}
method: {type: lora, r: 2, target_modules: [q_proj, v_proj]}
training: {max_steps: 3, batch_size: 4, micro_batch_size: 2, learning_rate: 2e-3}
evaluation: {samples: 1, every: 1}
generation: {max_new_tokens: 3}
checkpoint: {every: 1, keep: 3}
threads: 1
"""
TOLD = ("differ", "warning: ", "damaged", "is not what")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Base, template, rows, recipe with its lock, a finished run, one that was stopped after its second step, a cache."""
    folder = tmp_path_factory.mktemp("scene")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTCLI_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        shutil.copytree(builtin_base("tiny"), folder / "base")
        written = json.loads((folder / "base" / "tokenizer_config.json").read_text(encoding="utf-8"))
        (folder / "t.jinja").write_text(written["chat_template"], encoding="utf-8")
        rows = builtin_data("support").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "rows.jsonl").write_text("".join([*rows[:11], rows[0]]), encoding="utf-8")
        (folder / "held.jsonl").write_text("".join([rows[0], *rows[-4:]]), encoding="utf-8")
        (folder / "r.yaml").write_text(RECIPE, encoding="utf-8")
        assert peft(["train", "r.yaml", "--output", "run", "--quiet"]) == 0
        assert peft(["lock", "run"]) == 0
        shutil.copytree(folder / "run", folder / "stopped")
        shutil.rmtree(folder / "stopped" / "adapter")
        shutil.rmtree(folder / "stopped" / "checkpoints" / "step-00000003")
        for name in ("run.json", "report.html", "report.md"):
            (folder / "stopped" / name).unlink()
        yield folder


# -- commands: what each answers -----------------------------------------------------------------------------------

Answer = Callable[[Path, str], Any]


def _document(folder: Path, printed: str) -> Any:
    document = json.loads(printed)
    return {key: value for key, value in document.items() if key not in ("seconds", "folder", "output", "recipe")}


def _run_answer(name: str) -> Answer:
    def answer(folder: Path, printed: str) -> Any:
        run = folder / name
        record = json.loads((run / "run.json").read_text())
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        last = {(line["event"], line["step"]): line for line in lines if line["event"] in ("train", "eval")}
        losses = {str(key): [line.get("loss"), line.get("eval_loss")] for key, line in last.items()}
        findings = (run / "data" / "findings.jsonl").read_text()
        adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
        return record["evaluation"], record["samples"], losses, findings, adapter

    return answer


def _merged(folder: Path, printed: str) -> Any:
    own = ("README.md", "peftcli_merge.json")
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir() if path.name not in own}


COMMANDS: dict[str, tuple[list[str], Answer]] = {
    "train": (["train", "r.yaml", "--output", "out", "--quiet"], _run_answer("out")),
    "locked": (["train", "r.yaml", "--output", "out", "--locked", "--quiet"], _run_answer("out")),
    "resume": (["resume", "again", "--quiet"], _run_answer("again")),
    "evaluate": (["evaluate", "run", "--json", "--quiet"], _document),
    "generate": (
        ["generate", "run", "--prompt", "Hi", "--base", "--json", "--quiet", "--set", "generation.max_new_tokens=8"],
        _document,
    ),
    "merge": (["merge", "run", "--output", "out", "--quiet"], _merged),
    "reproduce": (["reproduce", "r.yaml", "--json", "--quiet"], _document),
    "reproduce run": (["reproduce", "run", "--json", "--quiet", "--steps", "2"], _document),
    "report": (["report", "run"], lambda folder, printed: (folder / "run" / "report.html").read_bytes()),
    "lock": (["lock", "run"], lambda folder, printed: (folder / "r.lock").read_bytes()),
}

OF_THE_BASE = ("locked", "resume", "evaluate", "generate", "merge", "reproduce")
OF_THE_DATA = ("locked", "resume", "evaluate", "reproduce")
OF_THE_ADAPTER = ("evaluate", "generate", "merge")
OF_A_RUN = (*OF_THE_ADAPTER, "report", "lock")
READ: dict[str, tuple[str, ...]] = {
    "base/model.safetensors": OF_THE_BASE,
    "base/config.json": OF_THE_BASE,
    "base/tokenizer.json": OF_THE_BASE,
    "base/tokenizer_config.json": OF_THE_BASE,
    "base/generation_config.json": OF_THE_BASE,
    "t.jinja": OF_THE_BASE,
    "rows.jsonl": OF_THE_DATA,
    "held.jsonl": OF_THE_DATA,
    "r.yaml": ("locked", "reproduce"),
    "r.lock": ("locked", "reproduce"),
    "run/adapter/adapter_model.safetensors": OF_THE_ADAPTER,
    "run/adapter/adapter_config.json": OF_THE_ADAPTER,
    "run/adapter/tokenizer.json": OF_THE_ADAPTER,
    "run/adapter/tokenizer_config.json": OF_THE_ADAPTER,
    "run/adapter/chat_template.jinja": OF_THE_ADAPTER,
    "run/adapter/generation_config.json": OF_THE_ADAPTER,
    "run/adapter/peftcli.json": OF_THE_ADAPTER,
    "run/run.json": OF_A_RUN,
    "run/metrics.jsonl": OF_A_RUN,
    "run/recipe.yaml": (*OF_A_RUN, "reproduce run"),
    "run/recipe.lock": (*OF_A_RUN, "reproduce run"),
    "run/data/findings.jsonl": OF_A_RUN,
    "stopped/checkpoints/step-00000002/adapter.safetensors": ("resume",),
    "stopped/checkpoints/step-00000002/optimizer.safetensors": ("resume",),
    "stopped/checkpoints/step-00000002/state.json": ("resume",),
    "stopped/checkpoints/step-00000002/manifest.json": ("resume",),
    "stopped/metrics.jsonl": ("resume",),
    "stopped/recipe.yaml": ("resume",),
    "stopped/recipe.lock": ("resume",),
    "cache/tokens/**/tokens.bin": ("train", "resume"),
    "cache/tokens/**/weights.bin": ("train", "resume"),
    "cache/tokens/**/source.json": ("train", "resume"),
    "cache/reviews/*.json": ("train", "resume"),
}
CASES = [(name, command) for name, commands in READ.items() for command in commands]
TRIES = {"report": 8, "lock": 4, "generate": 2}
"""How often a command that is quick is tried: many a digit is shown rounded, or not at all."""
QUICK = {
    ("run/metrics.jsonl", "report"),
    ("run/recipe.lock", "lock"),
    ("run/recipe.yaml", "evaluate"),
    ("run/data/findings.jsonl", "report"),
    ("held.jsonl", "evaluate"),
    ("base/generation_config.json", "generate"),
    ("cache/reviews/*.json", "train"),
    ("stopped/metrics.jsonl", "resume"),
}


def changed(data: bytes, generator: random.Random) -> bytes:
    """The same with another digit, where there is one in a text, else with one bit flipped."""
    try:
        text = data.decode("ascii" if b"\0" in data else "utf-8")
        places = [index for index, character in enumerate(text) if character in "0123456789"]
    except UnicodeDecodeError:
        places, text = [], ""
    if places:
        place = generator.choice(places)
        digit = generator.choice([digit for digit in "123456789" if digit != text[place]])
        return (text[:place] + digit + text[place + 1 :]).encode()
    flipped = bytearray(data)
    place = generator.randrange(len(data) * 8)
    flipped[place // 8] ^= 1 << place % 8
    return bytes(flipped)


class Told:
    """What a command said and answered."""

    def __init__(self, scene: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        arguments, answer = COMMANDS[command]
        capsys.readouterr()
        self.code = peft(arguments)
        printed = capsys.readouterr()
        self.text = printed.out + printed.err
        self.inputs = json.loads(printed.out).get("inputs") if command.startswith("reproduce") and printed.out else None
        self.answer = answer(scene, printed.out) if self.code == 0 else None

    @property
    def noticed(self) -> bool:
        return self.code != 0 or bool(self.inputs) or any(word in self.text for word in TOLD)


@pytest.fixture
def place(scene: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The scene, as it was before and is afterwards."""
    monkeypatch.setenv("PEFTCLI_CACHE", str(scene / "cache"))
    monkeypatch.chdir(scene)
    kept = scene.with_name(f"{scene.name}-kept")
    if not kept.exists():
        shutil.copytree(scene, kept)
    yield scene
    shutil.rmtree(scene)
    shutil.copytree(kept, scene)


BEFORE: dict[str, Told] = {}


def run_on(place: Path, command: str, capsys: pytest.CaptureFixture[str]) -> Told:
    for name in ("out", "again"):
        shutil.rmtree(place / name, ignore_errors=True)
    if command == "resume":
        shutil.copytree(place / "stopped", place / "again")
    return Told(place, command, capsys)


@pytest.mark.parametrize(
    ("name", "command"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_one_changed_bit(place: Path, name: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    if command not in BEFORE:
        BEFORE[command] = run_on(place, command, capsys)
    whole = BEFORE[command]
    assert whole.code == 0, whole.text
    paths = sorted(place.glob(name))
    if not paths:
        pytest.skip("this run writes no such file")
    generator = random.Random(f"{name} {command}")
    kept = {path: path.read_bytes() for path in paths}
    for _ in range(TRIES.get(command, 1)):
        for path, data in kept.items():
            path.write_bytes(changed(data, generator) if data else b"1")
        found = run_on(place, command, capsys)
        assert found.code in (0, 2, 3, 4, 6, 7, 8, 10), found.text
        assert "Traceback" not in found.text
        assert found.noticed or found.answer == whole.answer, (found.text, paths)
