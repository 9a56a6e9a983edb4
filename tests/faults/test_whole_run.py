"""A whole run is killed, or its disk fails, at any point from the first file to the report; it ends in the same bytes.

Afterwards nobody mends anything: `peft resume`, or `peft train` where no run had begun, or `peft merge` again.
By default points are drawn, anew for each commit; marked slow is every point there is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from faulty_disk import BROKEN, BROKEN_ONCE, FULL, KILL_BEFORE, KILL_HALFWAY, SHORT_WRITE, FaultyDisk
from whole_run import (
    LORA,
    PROMPT,
    ROOT,
    Child,
    adapter_bytes,
    contents,
    draw,
    expected_codes,
    go_on,
    in_a_fork,
    in_a_process,
    one_cpu,
    require_whole,
    write_recipe,
)

import peftcli
from peftcli import files
from peftcli.cli.entry import run as peft
from peftcli.jobs import merge as merge_job

DRAWN = {KILL_BEFORE: 12, KILL_HALFWAY: 10, FULL: 8, BROKEN_ONCE: 8, BROKEN: 3, SHORT_WRITE: 3}
DRAWN_PROCESSES = {KILL_BEFORE: 4, KILL_HALFWAY: 3, FULL: 2, BROKEN_ONCE: 1}
DRAWN_MERGE = {KILL_BEFORE: 3, KILL_HALFWAY: 3, FULL: 2, BROKEN_ONCE: 2}
DRAWN_CACHE = {KILL_BEFORE: 2, KILL_HALFWAY: 2, FULL: 1, BROKEN_ONCE: 1}
PROCESS = [str(Path(__file__).with_name("process.py"))]
Record = Callable[[str, object], None]


class Whole:
    """An undisturbed run, and a disk that has counted its calls."""

    def __init__(self, folder: Path, method: str) -> None:
        self.recipe = write_recipe(folder, method)
        self.folder = folder / "whole"
        train(self.recipe, folder / "warm", FaultyDisk())
        self.disk = train(self.recipe, self.folder, FaultyDisk())
        assert adapter_bytes(folder / "warm") == adapter_bytes(self.folder)


def test_there_are_sixty() -> None:
    drawn = sum(sum(counts.values()) for counts in (DRAWN, DRAWN_PROCESSES, DRAWN_CACHE))
    assert drawn >= 60
    assert sum(DRAWN_PROCESSES.values()) == 10


def train(recipe: Path, folder: Path, disk: FaultyDisk) -> FaultyDisk:
    before, files.disk = files.disk, disk
    try:
        assert peft(["train", str(recipe), "--output", str(folder), "--quiet"]) == 0
    finally:
        files.disk = before
    return disk


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("run"), PROMPT)


@pytest.mark.parametrize("kind", DRAWN)
def test_drawn_points(whole: Whole, tmp_path: Path, kind: str, record_property: Record) -> None:
    points = whole.disk.points(kind)
    drawn = draw(points, DRAWN[kind], kind)
    meet_every(whole, tmp_path, kind, drawn)
    record_property("count", f"whole run, {kind}: {len(drawn)} of {len(points)} points ended in the same bytes")


def test_a_process_takes_the_package_that_is_tested() -> None:
    code, text = in_a_process([], ["-c", "import peftcli; print(peftcli.__file__)"])
    assert (code, text.strip()) == (0, peftcli.__file__)
    assert Path(peftcli.__file__).parents[1] == ROOT


@pytest.mark.parametrize("kind", DRAWN_PROCESSES)
def test_whole_processes(whole: Whole, tmp_path: Path, kind: str, record_property: Record) -> None:
    """Nothing is warm here: what fails is a process of its own, and the first that goes on as well."""
    points = whole.disk.points(kind)
    drawn = draw(points, DRAWN_PROCESSES[kind], f"processes {kind}")
    for number, point in enumerate(drawn):
        folder = tmp_path / f"point-{point}" / "run"
        arguments = ["train", str(whole.recipe), "--output", str(folder), "--quiet"]
        code, text = in_a_process([kind, str(point), *arguments], PROCESS)
        assert code in expected_codes(kind), (kind, point, text)
        require_few_lines(text, code, (kind, point))
        go_on(whole.recipe, folder, in_a_process if kind == KILL_BEFORE and number == 0 else in_a_fork)
        require_whole(folder, whole.folder, (kind, point))
    record_property("count", f"whole processes, {kind}: {len(drawn)} of {len(points)} points ended in the same bytes")


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRAWN)
def test_every_point(whole: Whole, tmp_path: Path, kind: str, record_property: Record) -> None:
    points = whole.disk.points(kind)
    meet_every(whole, tmp_path, kind, points)
    record_property("count", f"whole run, {kind}: all {len(points)} points ended in the same bytes")


def meet_every(whole: Whole, place: Path, kind: str, points: Sequence[int]) -> None:
    for point in points:
        folder = place / f"point-{point}" / "run"
        what = (kind, point, whole.disk.calls[point])
        arguments = ["train", str(whole.recipe), "--output", str(folder), "--quiet"]
        code, text = Child(arguments, FaultyDisk(kind, point)).end()
        assert code in expected_codes(kind), (what, code, text)
        require_few_lines(text, code, what)
        if code != 0:
            go_on(whole.recipe, folder)
        require_whole(folder, whole.folder, what)
        shutil.rmtree(folder.parent)


def require_few_lines(text: str, code: int, what: object) -> None:
    """A full or broken disk is told with the file and the remedy, not by a traceback."""
    assert "Traceback" not in text, (what, text)
    if code == 6:
        assert "  at /" in text, (what, text)
        assert "  fix: " in text, (what, text)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["drawn", "every"])
@pytest.mark.parametrize("kind", DRAWN_CACHE)
def test_the_first_run_on_this_data(
    whole: Whole, tmp_path: Path, kind: str, every: bool, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    """The same with an empty token cache, which is then written as well."""
    monkeypatch.setenv("PEFTCLI_CACHE", str(tmp_path / "counted"))
    disk = train(whole.recipe, tmp_path / "run", FaultyDisk())
    extra = len(disk.calls) - len(whole.disk.calls)
    assert extra > 10, "the cache is written"
    points = [point for point in disk.points(kind) if point < extra + 4]
    for point in (drawn := points if every else draw(points, DRAWN_CACHE[kind], f"cache {kind}")):
        folder = tmp_path / f"point-{point}" / "run"
        monkeypatch.setenv("PEFTCLI_CACHE", str(tmp_path / f"cache-{point}"))
        arguments = ["train", str(whole.recipe), "--output", str(folder), "--quiet"]
        code, text = Child(arguments, FaultyDisk(kind, point)).end()
        # a run needs no cache: one that cannot be written is told and left out
        assert code in expected_codes(kind) | {0}, (kind, point, text)
        require_few_lines(text, code, (kind, point))
        go_on(whole.recipe, folder)
        require_whole(folder, whole.folder, (kind, point))
        assert not [path for path in (tmp_path / f"cache-{point}").rglob(".tmp-*") if path.is_dir()]
    record_property("count", f"token cache, {kind}: {len(drawn)} of {len(points)} points")


# -- merge -------------------------------------------------------------------------------------------------------


class Merged:
    """A trained LoRA, its undisturbed merge, and a disk that has counted the calls of merging."""

    def __init__(self, folder: Path) -> None:
        self.run = Whole(folder, LORA).folder
        self.folder = folder / "merged"
        self.disk = FaultyDisk()
        before, files.disk = files.disk, self.disk
        try:
            with one_cpu():
                assert peft(["merge", str(self.run), "--output", str(self.folder), "--quiet"]) == 0
        finally:
            files.disk = before


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Merged]:
    patch = pytest.MonkeyPatch()
    # what is compared is not what is tested here
    patch.setattr(merge_job, "PROMPTS", merge_job.PROMPTS[:1])
    yield Merged(tmp_path_factory.mktemp("merge"))
    patch.undo()


@pytest.mark.parametrize("kind", DRAWN_MERGE)
def test_drawn_points_of_a_merge(merged: Merged, tmp_path: Path, kind: str, record_property: Record) -> None:
    points = merged.disk.points(kind)
    drawn = draw(points, DRAWN_MERGE[kind], f"merge {kind}")
    meet_every_of_a_merge(merged, tmp_path, kind, drawn)
    record_property("count", f"merge, {kind}: {len(drawn)} of {len(points)} points ended in the same bytes")


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRAWN_MERGE)
def test_every_point_of_a_merge(merged: Merged, tmp_path: Path, kind: str, record_property: Record) -> None:
    points = merged.disk.points(kind)
    meet_every_of_a_merge(merged, tmp_path, kind, points)
    record_property("count", f"merge, {kind}: all {len(points)} points ended in the same bytes")


def meet_every_of_a_merge(merged: Merged, place: Path, kind: str, points: Sequence[int]) -> None:
    for point in points:
        output = place / f"point-{point}" / "merged"
        what = (kind, point, merged.disk.calls[point])
        arguments = ["merge", str(merged.run), "--output", str(output), "--quiet"]
        code, text = Child(arguments, FaultyDisk(kind, point)).end()
        assert code in expected_codes(kind), (what, code, text)
        require_few_lines(text, code, what)
        if not output.exists():
            code, text = in_a_fork(arguments)
            assert code == 0, (what, text)
        assert contents(output) == contents(merged.folder), what
        assert not list(output.parent.glob(".tmp-*")), what
