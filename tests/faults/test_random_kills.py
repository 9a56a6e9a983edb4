"""Whole runs, resumes and jobs are killed at random moments, and lose their power at drawn calls; nobody mends anything.

`make test-faults` kills 200 times; `PEFTCLI_KILLS=60` as often as that, and `PEFTCLI_KILL_MINUTES` (default 60) ends it
earlier. Each commit draws anew. The default tests kill a few times.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from faulty_disk import FaultyDisk
from power_loss import POWER_LOSS, POWER_LOSS_NAMES, PowerLossDisk
from whole_run import LORA, Child, adapter_bytes, commit_seed, contents, draw, go_on, require_whole, write_recipe

from peftcli import files
from peftcli.cli.entry import run as peft

Record = Callable[[str, object], None]
FEW = 4
MOST_IN_A_ROW = 6
AROUND = {"start", "resume", "checkpoint", "end", "mended_log"}
"""Events of the process that trains; those of the training are the others."""
LOST = {POWER_LOSS: 3, POWER_LOSS_NAMES: 3}


class Undisturbed:
    """A run and its merged model that nothing happened to, with the work that each took and how many calls the run made."""

    def __init__(self, folder: Path) -> None:
        self.recipe = write_recipe(folder, LORA)
        self.run, self.merged = folder / "run", folder / "merged"
        self.seconds: dict[str, float] = {}
        # in this process and first: what it imports and makes ready, every fork then has
        for name in ("first", "counted"):
            self.calls = self._calls(["train", str(self.recipe), "--output", str(folder / name), "--quiet"])
        self._timed("train", ["train", str(self.recipe), "--output", str(self.run), "--quiet"])
        self._timed("merge", ["merge", str(self.run), "--output", str(self.merged), "--quiet"])

    def _calls(self, arguments: Sequence[str]) -> int:
        disk = FaultyDisk()
        before, files.disk = files.disk, disk
        try:
            assert peft(list(arguments)) == 0
        finally:
            files.disk = before
        return len(disk.calls)

    def _timed(self, name: str, arguments: Sequence[str]) -> None:
        child = Child(arguments)
        self.seconds[name] = child.work()
        code, text = child.end()
        assert code == 0, text


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"))


def killed(arguments: Sequence[str], seconds: float) -> bool:
    """Runs a command and kills it after so much work; False where it had ended before.

    Work is counted in seconds of the processor: how long a run takes by the clock depends on what else the machine does,
    and moments that were drawn on a quiet one lie all in the first tenth, or all behind the end.
    """
    child = Child(arguments)
    with_signal = child.work(seconds) >= seconds
    if with_signal:
        os.kill(child.pid, signal.SIGKILL)
    code, text = child.end()
    assert code in (-signal.SIGKILL, 0) or not with_signal, text
    return code == -signal.SIGKILL


def one_chain(undisturbed: Undisturbed, place: Path, generator: random.Random) -> int:
    """A run, its resumes and its merge, each killed some times until one gets through; how many kills that were."""
    folder, merged = place / "run", place / "merged"
    train = ["train", str(undisturbed.recipe), "--output", str(folder), "--quiet"]
    resume, merge = ["resume", str(folder), "--quiet"], ["merge", str(folder), "--output", str(merged), "--quiet"]

    def until_one_ends(length: float, command: Callable[[], Sequence[str]]) -> int:
        moments = [generator.uniform(0, length) for _ in range(generator.randrange(1, MOST_IN_A_ROW + 1))]
        return sum(itertools.takewhile(bool, (killed(command(), moment) for moment in moments)))

    kills = until_one_ends(undisturbed.seconds["train"], lambda: resume if (folder / "run.json").exists() else train)
    go_on(undisturbed.recipe, folder)
    require_whole(folder, undisturbed.run, kills)
    require_records(folder, undisturbed.run)
    kills += until_one_ends(undisturbed.seconds["merge"], lambda: merge)
    if not merged.exists():
        code, text = Child(merge).end()
        assert code == 0, text
    weights = [name for name in contents(undisturbed.merged) if name.endswith((".safetensors", "config.json"))]
    assert weights
    assert {name: contents(merged)[name] for name in weights} == {
        name: contents(undisturbed.merged)[name] for name in weights
    }
    return kills


def require_records(folder: Path, expected: Path) -> None:
    """The metrics have each event of each step once, as without a kill, and the lock is whole and holds."""
    assert events(folder) == events(expected)
    lock = (folder / "recipe.lock").read_text(encoding="utf-8")
    assert len(lock.splitlines()) == len((expected / "recipe.lock").read_text(encoding="utf-8").splitlines())
    assert adapter_bytes(folder) == adapter_bytes(expected)


def events(folder: Path) -> list[tuple[str, int]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return sorted({(line["event"], line["step"]) for line in lines if "step" in line and line["event"] not in AROUND})


def kill_often(undisturbed: Undisturbed, place: Path, wanted: int, seconds: float) -> int:
    generator, kills, ends = commit_seed("random kills"), 0, time.monotonic() + seconds
    for number in itertools.count():
        if kills >= wanted or time.monotonic() > ends:
            return kills
        chain = place / f"chain-{number}"
        chain.mkdir()
        kills += one_chain(undisturbed, chain, generator)
        shutil.rmtree(chain)
    raise AssertionError("a count has no end")


def test_a_few_random_kills(undisturbed: Undisturbed, tmp_path: Path, record_property: Record) -> None:
    kills = kill_often(undisturbed, tmp_path, FEW, 60)
    assert kills > 0
    record_property("count", f"random kills: {kills}")


@pytest.mark.faults
def test_many_random_kills(undisturbed: Undisturbed, tmp_path: Path, record_property: Record) -> None:
    wanted, minutes = (
        int(os.environ.get(*name)) for name in (("PEFTCLI_KILLS", "200"), ("PEFTCLI_KILL_MINUTES", "60"))
    )
    kills = kill_often(undisturbed, tmp_path, wanted, 60.0 * minutes)
    print(f"{kills} random kills of runs, resumes and merges ended in the same bytes")
    record_property("count", f"random kills: {kills} of {wanted}")
    assert kills >= wanted, f"only {kills} in {minutes} minutes"


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.faults)], ids=["drawn", "every"])
@pytest.mark.parametrize("kind", LOST)
def test_power_loss(kind: str, every: bool, undisturbed: Undisturbed, tmp_path: Path, record_property: Record) -> None:
    points = list(range(undisturbed.calls))
    drawn = points if every else draw(points, LOST[kind], kind)
    for point in drawn:
        folder = tmp_path / f"point-{point}" / "run"
        arguments = ["train", str(undisturbed.recipe), "--output", str(folder), "--quiet"]
        code, text = Child(arguments, PowerLossDisk(kind, point)).end()
        assert code == -signal.SIGKILL, (point, code, text)
        go_on(undisturbed.recipe, folder)
        require_whole(folder, undisturbed.run, (kind, point))
        require_records(folder, undisturbed.run)
        shutil.rmtree(folder.parent)
    record_property("count", f"{kind}: {len(drawn)} of {len(points)} points ended in the same bytes")
