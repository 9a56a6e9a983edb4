"""Chat templates of real models as Modelfiles (`make templates`): Go's own text/template renders what transformers does.

The judge is a small Go program that shares nothing with us; where there is no Go, nothing is judged.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tokenizers import processors

from peftcli.adapters.documents import FORMAT, OWN_NAME
from peftcli.errors import AdapterError
from peftcli.exporting.ollama import chat_pieces, write_modelfile
from peftcli.folders import staged_folder
from peftcli.jobs.opening import OpenModel
from peftcli.runs.locating import Location
from peftcli.runs.writing_notes import CHAT
from tests.data.corpus.conversations import CONVERSATIONS
from tests.data.corpus.corpus import fixed_day, takes_parts, tokenizer_for
from tests.data.corpus.oracle import normalised

JUDGE = Path(__file__).with_name("ollama_judge.go")
OWN = Path(__file__).parents[1] / "data" / "templates"
NAMES = ("single", "system", "turns", "system-turns", "echo", "special", "emoji")
"""Conversations of texts alone: tools and thoughts are no part of a Modelfile's template."""
TOLD = {"emoji": "strips spaces", "thought inside": "leaves thoughts out", "late system": "behind the first place"}
"""Conversation -> what the notes say where it does not come out equal."""
BEYOND: dict[str, list[dict[str, str]]] = {
    "thought inside": [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "<think>\nWhich one?\n</think>\n\nBlue."},
        {"role": "user", "content": "Another?"},
    ],
    "late system": [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "system", "content": "Now in French."},
        {"role": "user", "content": "Another?"},
    ],
}
needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed (apt install golang-go)")


def sources() -> Iterator[Path]:
    yield from sorted(OWN.glob("*.jinja"))
    if folder := os.environ.get("PEFTCLI_TEMPLATES"):
        yield from sorted(Path(folder).glob("*.jinja"))


def tokenizer_of(path: Path, *, adds_start: bool) -> Any:
    """`adds_start`: the tokenizer puts `<s>` before every text, as many do."""
    tokenizer = tokenizer_for(path.read_text(encoding="utf-8"))
    if adds_start:
        number = tokenizer.bos_token_id
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", number)])
    return tokenizer


def modelfile(folder: Path, tokenizer: Any) -> tuple[str, str]:
    """The template as the file has it, and the notes on it. Raises `AdapterError` where it cannot be expressed."""
    (folder / OWN_NAME).write_text(json.dumps({"format": FORMAT, "notes": {"prompt": CHAT}}))
    location = Location(folder, None, None, told=False, recorded=None, revision=None, record={})
    opened = cast(OpenModel, SimpleNamespace(tokenizer=tokenizer, location=location))
    with staged_folder(folder / "out") as staging:
        notes = write_modelfile(staging, opened, merged=True, stops=[tokenizer.eos_token_id])
    text = (folder / "out" / "Modelfile").read_text(encoding="utf-8")
    shutil.rmtree(folder / "out")
    found = re.fullmatch(r'FROM \./model\.gguf\nTEMPLATE """(.*?)"""\n(PARAMETER .*\n)+', text, re.DOTALL)
    assert found is not None, text
    assert ".Messages" in found[1]
    return found[1], " ".join(notes)


def prompts() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Every conversation up to each message of the user's."""
    for name in NAMES:
        messages = CONVERSATIONS[name]["messages"]
        for end, message in enumerate(messages, start=1):
            if message["role"] == "user":
                yield name, messages[:end]
    yield from BEYOND.items()


def expected(tokenizer: Any, messages: list[dict[str, str]], *, adds_start: bool) -> str | None:
    """The prompt of transformers without the start token that the server adds; None where the template refuses."""
    from jinja2 import TemplateError

    rows = normalised(messages, parts=takes_parts(tokenizer))
    try:
        with fixed_day():
            text: str = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError):
        return None
    return text.removeprefix("<s>") if adds_start else text


def judged(jobs: list[dict[str, Any]]) -> list[dict[str, str]]:
    done = subprocess.run(
        ["go", "run", str(JUDGE)], input=json.dumps(jobs), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


@needs_go
@pytest.mark.slow
@pytest.mark.parametrize("adds_start", [False, True])
def test_what_is_written_is_what_the_tokenizer_writes(tmp_path: Path, *, adds_start: bool) -> None:
    refused: dict[str, str] = {}
    jobs: list[dict[str, Any]] = []
    wanted: list[tuple[str, str, str | None, bool]] = []
    paths = list(sources())
    for path in paths:
        tokenizer = tokenizer_of(path, adds_start=adds_start)
        try:
            template, notes = modelfile(tmp_path, tokenizer)
        except AdapterError as error:
            refused[path.stem] = error.message
            continue
        for name, messages in prompts():
            jobs.append({"template": template, "messages": messages})
            text = expected(tokenizer, messages, adds_start=adds_start)
            wanted.append((path.stem, name, text, TOLD.get(name, "nothing of it") in notes))
    outcomes: Counter[str] = Counter()
    wrong = []
    for (stem, name, text, told), said in zip(wanted, judged(jobs), strict=True):
        same = said["text"] == text if text is not None else bool(said["error"])
        kind = "told" if told and not same else "wrong" if not same else "equal" if text else "refused by both"
        outcomes[kind] += 1
        if kind == "wrong":
            wrong.append((stem, name, said["text"][:400], text, said["error"]))
    print(f"{len(paths)} templates: {len(paths) - len(refused)} expressed, {len(refused)} refused; prompts {outcomes}")
    print(Counter((stem, name) for stem, name, *_ in wrong), *wrong[:4], sep="\n")
    print("\n".join(f"{stem}: {why}" for stem, why in refused.items()))
    assert wrong == []
    assert outcomes["equal"] > outcomes["told"]
    assert len(paths) - len(refused) >= (2 if adds_start else 6)


def test_how_templates_of_the_house_fare(tmp_path: Path) -> None:
    """By the written rules alone: which can be expressed."""
    fates = {}
    for path in sorted(OWN.glob("*.jinja")):
        try:
            chat_pieces(tokenizer_of(path, adds_start=False), "here")
        except AdapterError:
            fates[path.stem] = "refused"
        else:
            fates[path.stem] = "expressed"
    assert list(fates.values()).count("refused") == 0, fates
