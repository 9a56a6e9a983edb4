"""Nothing that a stranger wrote drives the terminal: names, rows, fields and errors are printed with every hidden
character made visible, by every command, on stdout and stderr, as text and as JSON."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_case import CHAT, GOOD, one_cpu

from peftcli.cli.app import COMMANDS
from peftcli.cli.entry import run as peft
from peftcli.models.builtin import builtin_base
from peftcli.streams import LastingStream

EVIL = "\x1b[31mred\x9b2J\x07\x08\u202ekcab\u2066\r\u200b\x7f"
"""A colour, a cleared screen (in 8 bits), a bell, a step back, a turned line, the line begun anew, nothing, a deletion."""
OURS = re.compile(r"\x1b\[(?:0|1|2|4|31|32|33)m")
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def hidden_in(text: str) -> list[str]:
    return sorted({char for char in text if unicodedata.category(char) in HIDDEN} - {"\n", "\t", "\u200d", "\u200c"})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def evil(value: Any, depth: int = 0) -> Any:
    """A document whose every text ends in what no terminal should meet, with a key of that kind too."""
    if isinstance(value, dict):
        return {key: evil(item, depth + 1) for key, item in value.items()} | {f"key{EVIL}": EVIL}
    if isinstance(value, list):
        return [evil(item, depth + 1) for item in value]
    return f"{value}{EVIL}" if isinstance(value, str) else value


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


def names_that_are_evil(folder: Path, trained: Path) -> None:
    """Every document as it is: only folders, files and rows have such names and texts."""
    rows = json.dumps({"messages": [{"role": "user", "content": EVIL}, {"role": "assistant", "content": EVIL}]})
    (folder / f"rows{EVIL}.jsonl").write_text(f"{rows}\n" * 6, encoding="utf-8")
    shutil.copytree(builtin_base("tiny"), folder / f"base{EVIL}")
    recipe = GOOD.replace("{path: builtin:support, rows: 12}", json.dumps(f"./rows{EVIL}.jsonl"))
    recipe = recipe.replace("builtin:tiny", json.dumps(f"./base{EVIL}")).replace("validation: 4", "validation: 2")
    (folder / "r.yaml").write_text(recipe, encoding="utf-8")
    shutil.copytree(trained, folder / "run")


def documents_that_are_evil(folder: Path, trained: Path) -> None:
    """Every text of every document ends in it."""
    (folder / "r.yaml").write_text(GOOD + f"evil{json.dumps(EVIL)[1:-1]}: 1\n", encoding="utf-8")
    shutil.copytree(trained, folder / "run")
    for path in (folder / "run").rglob("*.json"):
        edit(path, evil)
    lines = (folder / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    changed = "".join(json.dumps(evil(json.loads(line))) + "\n" for line in lines)
    (folder / "run/metrics.jsonl").write_text(changed, encoding="utf-8")


def fields_that_are_evil(name: str) -> Callable[[Path, Path], None]:
    """One field of the adapter's configuration after the other, so that no earlier check hides a later print."""

    def prepare(folder: Path, trained: Path) -> None:
        (folder / "r.yaml").write_text(GOOD.replace("builtin:tiny", f'"builtin:{json.dumps(EVIL)[1:-1]}"'))
        shutil.copytree(trained, folder / "run")
        for path in (folder / "run/adapter/adapter_config.json", folder / "run/run.json"):
            edit(path, lambda document: document | {name: EVIL})

    return prepare


def broken_rows(folder: Path, trained: Path) -> None:
    (folder / "rows.jsonl").write_text(CHAT * 3 + json.dumps({f"x{EVIL}": EVIL}, ensure_ascii=False) + "\n" + EVIL)
    (folder / "r.yaml").write_text(GOOD.replace("{path: builtin:support, rows: 12}", "./rows.jsonl"), encoding="utf-8")
    shutil.copytree(trained, folder / "run")


SCENES = {
    "names": names_that_are_evil,
    "documents": documents_that_are_evil,
    "rows": broken_rows,
    **{
        name: fields_that_are_evil(name)
        for name in ("base_model_name_or_path", "peft_type", "bias", "target_modules", "revision", "method", "base")
    },
}
USES: dict[str, list[str]] = {
    "init": ["init {evil}", "init quickstart --output {evil}/x.yaml"],
    "validate": ["validate r.yaml", "validate {evil}"],
    "plan": ["plan r.yaml"],
    "data": ["data r.yaml --rows 2"],
    "train": ["train r.yaml --output new"],
    "resume": ["resume run", "resume {evil}"],
    "evaluate": ["evaluate run"],
    "generate": ["generate run --prompt {evil} --set generation.max_new_tokens=2"],
    "chat": ["chat run"],
    "merge": ["merge run --output {evil}m"],
    "export": ["export run --to peft --output {evil}e", "export run --to {evil} --output e"],
    "convert": ["convert run/adapter --to lora --output c"],
    "combine": [
        "combine run {evil} --weights 1,1 --how cat --output {evil}c",
        "combine run run --weights 1,2 --how cat --output o",
    ],
    "inspect": ["inspect run", "inspect run/adapter", "inspect {evil}", "inspect base{evil}"],
    "diff": ["diff run run/adapter", "diff run {evil}"],
    "report": ["report run"],
    "compare": ["compare r.yaml", "compare r.yaml --methods lora,{evil}"],
    "push": ["push run {evil} --yes", "push {evil} me/mine --yes"],
    "serve": ["serve run", "serve {evil}"],
    "migrate": ["migrate run/adapter/adapter_config.json", "migrate {evil}"],
    "lock": ["lock r.yaml"],
    "reproduce": ["reproduce r.yaml", "reproduce run/recipe.lock"],
    "methods": ["methods {evil}"],
    "explain": ["explain {evil}"],
    "schema": ["schema {evil}"],
    "doctor": ["doctor {evil}"],
}


def test_every_command_is_tried() -> None:
    assert set(USES) == set(COMMANDS)


@contextlib.contextmanager
def terminal(patch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Standard streams of a terminal on which everything that a command writes can be read."""
    screen = Terminal()
    with patch.context() as inside:
        for name in ("stdout", "stderr"):
            inside.setattr(f"sys.{name}", screen)
        inside.setattr("sys.stdin", io.StringIO(f"{EVIL}\n"))
        yield screen


@pytest.mark.parametrize("scene", SCENES)
def test_nothing_hidden_is_printed(scene: str, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = scene not in ("names", "documents", "rows")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    SCENES[scene](tmp_path, trained)
    said = 0
    for command, uses in USES.items():
        if few and command not in ("validate", "inspect", "diff", "generate", "report", "plan"):
            continue
        for use in uses:
            for extra in ([], ["--json"]):
                arguments = [part.replace("{evil}", EVIL) for part in use.split()] + extra
                with terminal(monkeypatch) as screen, one_cpu():
                    code = peft(arguments)
                text = screen.getvalue()
                assert "Traceback" not in text, (use, text)
                assert "a bug in peftcli" not in text, (use, text)
                if command in ("train", "resume", "reproduce"):
                    # the bar moves the cursor
                    text = re.sub(r"\x1b\[\?25[lh]|\x1b\[\d*[A-K]|\x1b\[[\d;]+m|\r", "", text)
                assert hidden_in(OURS.sub("", text) if command == "data" else text) == [], (use, code, text)
                said += "⟨U+001B⟩" in text or "\\u001b" in text
    assert said >= (4 if few else 8), "it is shown, by its code point"


def test_libraries_that_print_are_cleaned_too(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    stream = LastingStream(screen)
    print(f"a{EVIL}b\tc", file=stream)
    assert screen.getvalue().startswith("a⟨U+001B⟩[31mred⟨U+009B⟩2J⟨U+0007⟩")
    assert hidden_in(screen.getvalue()) == []


def test_json_says_the_same_values(tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is escaped for the eye is the same text for a program."""
    folder = tmp_path / "adapter"
    shutil.copytree(trained / "adapter", folder)
    edit(folder / "adapter_config.json", lambda found: found | {"task_type": f"r{EVIL}\U000e0041é漢👨\u200d👩"})
    assert peft(["inspect", str(folder), "--json"]) == 0
    out = capsys.readouterr().out
    assert hidden_in(out) == []
    assert f"r{EVIL}\U000e0041é漢👨\u200d👩" in list(texts(json.loads(out)))


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(inner)
