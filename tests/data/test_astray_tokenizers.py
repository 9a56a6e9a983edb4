"""A tokenizer that goes astray on one certain text is stopped there: by the row, in one clear line, whoever asks it."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peftcli.bounded_call import Bounds, OutOfBounds, any_left_behind, within_bounds
from peftcli.cli.entry import run as peft
from peftcli.data import asking
from peftcli.data.asking import TokenizerLimit, text_of, token_ids
from peftcli.models.source import resolve_base
from peftcli.models.tokenizer_trial import require_bounded_tokenizer

STARS = {"Regex": "a*a*a*[bd]"}
SLOW = "a" * 330 + "cb"
"""Some seconds under that expression, and with ten times as many letters some hours."""
GROWING = "well ~§ so"


def _splits(core: dict[str, Any]) -> None:
    step = {"type": "Split", "pattern": STARS, "behavior": "Isolated", "invert": False}
    core["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [step, core["pre_tokenizer"]]}


def _decodes(core: dict[str, Any]) -> None:
    step = {"type": "Replace", "pattern": STARS, "content": "?"}
    core["decoder"] = {"type": "Sequence", "decoders": [core["decoder"], step]}


def _grows(core: dict[str, Any]) -> None:
    step = {"type": "Replace", "pattern": {"String": "~§"}, "content": "~§" * 4096}
    core["normalizer"] = {"type": "Sequence", "normalizers": [step] * 3}


@pytest.fixture
def base(tmp_path: Path) -> Callable[..., Path]:
    def make(change: Callable[[dict[str, Any]], None]) -> Path:
        source = resolve_base("builtin:tiny", folder=tmp_path).folder
        assert source is not None
        folder = tmp_path / "base"
        shutil.copytree(source, folder)
        core = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        change(core)
        (folder / "tokenizer.json").write_text(json.dumps(core), encoding="utf-8")
        # nothing of it shows on ordinary texts
        require_bounded_tokenizer(folder / "tokenizer.json", "base")
        return folder

    return make


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(asking, "SECONDS", 0.3)
    monkeypatch.setattr("peftcli.data.encode.encoder._SECONDS_TO_LOOK", 0.2)
    yield
    gc.collect()


def _recipe(folder: Path, base: Path, text: str, **data: Any) -> Path:
    rows = [{"prompt": f"what is {number}?", "completion": f" it is {number}"} for number in range(20)]
    rows[13]["completion"] = text
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "model": str(base),
        "data": {"train": "rows.jsonl", "validation": 0, **data},
        "method": {"type": "lora", "r": 1, "target_modules": ["q_proj"]},
        "training": {"max_steps": 2, "batch_size": 2},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return folder / "recipe.yaml"


@pytest.mark.parametrize(
    ("command", "data"),
    [("train", {}), ("data", {}), ("plan", {}), ("train", {"streaming": True})],
    ids=["train", "data", "plan", "streaming"],
)
def test_the_row_is_named(
    command: str, data: dict[str, Any], base: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(tmp_path, base(_splits), SLOW, **data)
    assert peft([command, str(recipe)]) == 4
    error = capsys.readouterr().err.split("error: ")[1].splitlines()
    assert error[0].startswith("the tokenizer needs more than 0 seconds on a text")
    assert error[1].endswith("rows.jsonl:14")
    assert len(error) == 3
    assert not list(tmp_path.glob("runs/*/run.json"))


IN_A_PROCESS = """
import sys
from peftcli.data import asking
from peftcli.cli.entry import main
asking._EXTRA_BYTES = 64 << 20
main(sys.argv[1:])
"""


def test_memory_is_bounded(base: Any, tmp_path: Path) -> None:
    # in a process of its own, since what is left behind goes on to take memory until it ends
    command = [sys.executable, "-c", IN_A_PROCESS, "data", str(_recipe(tmp_path, base(_grows), GROWING))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 4
    error = done.stderr.split("error: ")[1].splitlines()
    assert "MiB of memory on a text" in error[0]
    assert error[1].endswith("rows.jsonl:20")
    assert len(error) == 3


def test_prompts_and_answers_are_bounded(base: Any) -> None:
    from peftcli.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(resolve_base(str(base(_splits)), folder=Path()))
    with pytest.raises(TokenizerLimit):
        token_ids(tokenizer, SLOW)
    assert token_ids(tokenizer, "a good text") == tokenizer("a good text")["input_ids"]


def test_a_decoder_is_bounded(base: Any) -> None:
    from peftcli.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(resolve_base(str(base(_decodes)), folder=Path()))
    ids, good = token_ids(tokenizer, SLOW), token_ids(tokenizer, "It is good <|im_end|> so.")
    with pytest.raises(TokenizerLimit):
        text_of(tokenizer, ids)
    for settings in ({}, {"skip_special_tokens": True}, {"clean_up_tokenization_spaces": True}):
        assert text_of(tokenizer, good, **settings) == tokenizer.decode(good, **settings)


def test_slow_calls_add_up() -> None:
    allowance = asking.Allowance()

    def ten_calls() -> None:
        with allowance.of():
            for _ in range(10):
                allowance.bounded(lambda: time.sleep(0.1), size=1)

    with pytest.raises(TokenizerLimit):
        ten_calls()
    # outside, and for what its size explains, nothing is counted
    for _ in range(5):
        allowance.bounded(lambda: time.sleep(0.1), size=1)
    with allowance.of():
        for _ in range(5):
            allowance.bounded(lambda: time.sleep(0.1), size=20_000)


def test_a_call_gives_what_its_work_gives() -> None:
    bounds, open_door = Bounds(0.2, 1 << 30), threading.Event()

    class Panic(BaseException):
        pass

    def panics() -> None:
        raise Panic

    assert within_bounds(lambda: 7, bounds) == 7
    with pytest.raises(Panic):
        within_bounds(panics, bounds)
    with pytest.raises(OutOfBounds, match="more than 0 seconds"):
        within_bounds(open_door.wait, bounds)
    assert any_left_behind()
    open_door.set()
