"""Mutants of a recipe, an adapter's configuration, a safetensors header and a data file: only documented answers.

A hundred of each kind by default; marked slow are two thousand. None hangs, none shows a traceback, and a model whose
adapter was refused is as it was.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import mutants
import pytest
import torch

from peftcli import adapters
from peftcli.cli.entry import run as peft
from peftcli.errors import PeftcliError, exit_code_of
from peftcli.models.load import load_model
from peftcli.models.source import resolve_base

DOCUMENTED = {0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
CPU_SECONDS = 5.0
HANG_SECONDS = 60
NUMBERS = [40, pytest.param(2000, marks=pytest.mark.slow)]
ON_ROWS = "model: builtin:tiny\ndata: ./rows.jsonl\nmethod: lora\ntraining: {max_steps: 1, batch_size: 2}\nthreads: 1\n"
Record = Callable[[str, object], None]


class Hangs(BaseException):
    """Raised by the clock; no code of ours catches it."""


@contextmanager
def in_time(what: object) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hangs(what)

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANG_SECONDS)
    started = time.process_time()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert time.process_time() - started < CPU_SECONDS, what


@pytest.fixture
def answer(capfd: pytest.CaptureFixture[str]) -> Callable[[list[str], object], int]:
    """Runs a command; its exit code, after a look at what it printed."""

    def run(arguments: list[str], what: object) -> int:
        with in_time(what):
            code = peft(arguments)
        printed = "".join(capfd.readouterr())
        assert code in DOCUMENTED, (what, printed)
        assert "Traceback" not in printed, what
        assert len(printed) < 50_000, what
        assert code == 0 or "error: " in printed, (what, printed)
        return code

    return run


Answer = Callable[[list[str], object], int]


def tell(record_property: Record, kind: str, codes: list[int]) -> None:
    found = ", ".join(f"{count} x {code}" for code, count in sorted(Counter(codes).items()))
    record_property("count", f"fuzz, {kind}: {len(codes)} mutants, exit codes {found}")


@pytest.mark.parametrize("number", NUMBERS)
def test_recipes(number: int, tmp_path: Path, answer: Answer, record_property: Record) -> None:
    codes = []
    for seed in range(number):
        (tmp_path / "r.yaml").write_bytes(mutants.recipe(random.Random(seed)))
        codes.append(answer(["validate", str(tmp_path / "r.yaml")], seed))
    tell(record_property, "recipe", codes)
    # 4: what the base's name became is the name of no base
    assert set(codes) <= {0, 2, 3, 4, 5}
    assert codes.count(0) < number


@pytest.mark.parametrize("number", NUMBERS)
def test_rows(number: int, tmp_path: Path, answer: Answer, record_property: Record) -> None:
    codes = []
    (tmp_path / "r.yaml").write_text(ON_ROWS, encoding="utf-8")
    for seed in range(number):
        (tmp_path / "rows.jsonl").write_bytes(mutants.rows(random.Random(seed)))
        codes.append(answer(["data", str(tmp_path / "r.yaml"), "--rows", "1"], seed))
    tell(record_property, "data", codes)
    assert set(codes) <= {0, 3, 4}
    assert 0 < codes.count(0) < number


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.set_num_threads(1)
    return load_model(resolve_base("builtin:tiny", folder=Path()), dtype=torch.float32, device="cpu")


def mutate_config(folder: Path, draw: random.Random) -> None:
    path = folder / "adapter_config.json"
    path.write_bytes(mutants.config(path, draw))


def mutate_tensors(folder: Path, draw: random.Random) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(mutants.tensors(path, draw))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("mutate", [mutate_config, mutate_tensors], ids=["configuration", "safetensors"])
def test_adapters(
    mutate: Callable[[Path, random.Random], None],
    number: int,
    trained: Path,
    model: torch.nn.Module,
    tmp_path: Path,
    answer: Answer,
    record_property: Record,
) -> None:
    """Put on a model, the same one for all; every fifth is inspected by the command line as well."""
    codes = []
    names = [name for name, _ in model.named_modules()]
    for seed in range(number):
        folder = tmp_path / "adapter"
        shutil.copytree(trained / "adapter", folder)
        mutate(folder, random.Random(seed))
        codes.append(put_on(model, folder, seed))
        assert [name for name, _ in model.named_modules()] == names, seed
        if seed % 5 == 0:
            assert answer(["inspect", str(folder)], seed) in (0, 4, 6, 8), seed
        shutil.rmtree(folder)
    tell(record_property, f"adapter's {mutate.__name__.removeprefix('mutate_')}", codes)
    assert set(codes) <= {0, 2, 4, 5, 6, 8}
    assert codes.count(0) < number


def put_on(model: torch.nn.Module, folder: Path, seed: int) -> int:
    with in_time(seed):
        try:
            adapters.load(model, folder)
        except PeftcliError as error:
            text = error.render()
            assert "Traceback" not in text, seed
            assert len(text) < 20_000, seed
            return exit_code_of(error)
        adapters.detach(model)
    return 0
