"""`LD_PRELOAD=shim.so python shim_driver.py train|replace|merge KIND FOLDER [STRIDE]`: every call of the C library.

Each in a fork of this process, which has imported torch once. Prints one JSON document.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from whole_run import (
    LORA,
    PROMPT,
    Child,
    adapter_bytes,
    contents,
    go_on,
    in_a_fork,
    one_cpu,
    require_whole,
    write_recipe,
)

from peftcli.cli.entry import run as peft
from peftcli.jobs import merge as merge_job

COUNT = 0
KINDS = {"kill before": 1, "kill halfway": 2, "full from here on": 3, "broken once": 4, "short write": 5}
CODES = {
    "kill before": {-9},
    "kill halfway": {-9},
    "full from here on": {0, 6},
    "broken once": {0, 6},
    "short write": {0},
}
LIBRARY = ctypes.CDLL(None)


def arm(prefix: Path, kind: int, point: int) -> None:
    LIBRARY.shim_arm(str(prefix).encode(), kind, point)


def warm_up(arguments: list[str]) -> None:
    """Runs a command in this very process, in one thread: its forks then find everything imported."""
    with one_cpu(), contextlib.redirect_stdout(sys.stderr):
        assert peft(arguments) == 0


def count_calls(arguments: list[str], prefix: Path) -> int:
    """How many calls a whole command makes; the count comes back through a file outside of the prefix."""
    code, text = Child(arguments, arm=lambda: (arm(prefix, COUNT, -1), _tell_at_exit(prefix))).end()
    assert code == 0, text
    return int(text.rsplit("calls: ", 1)[1])


def _tell_at_exit(prefix: Path) -> None:
    from peftcli.cli import output

    show = output.show

    def counted(*args: Any, **kwargs: Any) -> None:
        show(*args, **kwargs)
        print(f"calls: {LIBRARY.shim_count()}", flush=True)

    for module in list(sys.modules.values()):
        if getattr(module, "show", None) is show:
            module.show = counted  # type: ignore[attr-defined]


def meet(arguments: list[str], prefix: Path, kind: str, point: int, report: dict[str, Any]) -> int:
    code, text = Child(arguments, arm=lambda: arm(prefix, KINDS[kind], point)).end()
    assert code in CODES[kind], (kind, point, code, text)
    assert "Traceback" not in text, (kind, point, text)
    report["codes"][str(code)] = report["codes"].get(str(code), 0) + 1
    report["points"] += 1
    return code


def train_points(kind: str, place: Path, stride: int, report: dict[str, Any]) -> None:
    recipe, whole = write_recipe(place, PROMPT), place / "whole"
    warm_up(["train", str(recipe), "--output", str(place / "warm"), "--quiet"])
    assert in_a_fork(["train", str(recipe), "--output", str(whole), "--quiet"])[0] == 0
    assert adapter_bytes(whole) == adapter_bytes(place / "warm")
    folder = place / "counted" / "run"
    folder.parent.mkdir()
    report["calls"] = count_calls(["train", str(recipe), "--output", str(folder), "--quiet"], folder)
    for point in range(list(KINDS).index(kind) % stride, report["calls"], stride):
        folder = place / f"point-{point}" / "run"
        folder.parent.mkdir()
        if meet(["train", str(recipe), "--output", str(folder), "--quiet"], folder, kind, point, report) != 0:
            go_on(recipe, folder)
        require_whole(folder, whole, (kind, point))
        shutil.rmtree(folder.parent)


def replace_points(kind: str, place: Path, stride: int, report: dict[str, Any]) -> None:
    """A run takes the place of an older one of another recipe: at each point the one or the other is whole."""
    (place / "before").mkdir()
    before, recipe = write_recipe(place / "before", LORA), write_recipe(place, PROMPT)
    old, new = place / "old", place / "new"
    warm_up(["train", str(before), "--output", str(place / "warm"), "--quiet"])
    for each, run in ((before, old), (recipe, new)):
        assert in_a_fork(["train", str(each), "--output", str(run), "--quiet"])[0] == 0
    as_it_was = contents(old)

    def begun(name: str) -> tuple[Path, list[str]]:
        run = place / name / "run"
        shutil.copytree(old, run)
        return run, ["train", str(recipe), "--output", str(run), "--replace", "--quiet"]

    counted, arguments = begun("counted")
    report["calls"] = count_calls(arguments, counted.parent)
    require_whole(counted, new, "counted")
    for point in range(list(KINDS).index(kind) % stride, report["calls"], stride):
        run, arguments = begun(f"point-{point}")
        code = meet(arguments, run.parent, kind, point, report)
        if contents(run) == as_it_was:
            assert code != 0, (kind, point)
            report["kept"] = report.get("kept", 0) + 1
        elif code != 0:
            resumed, text = in_a_fork(["resume", str(run), "--quiet"])
            assert resumed == 0, (kind, point, text)
        if contents(run) != as_it_was:
            assert adapter_bytes(run) == adapter_bytes(new), (kind, point)
        code, text = in_a_fork(arguments)
        assert code == 0, (kind, point, text)
        require_whole(run, new, (kind, point))
        assert [path.name for path in run.parent.iterdir()] == ["run"], (kind, point)
        shutil.rmtree(run.parent)


def merge_points(kind: str, place: Path, stride: int, report: dict[str, Any]) -> None:
    merge_job.PROMPTS = merge_job.PROMPTS[:1]
    recipe, run, whole = write_recipe(place, LORA), place / "run", place / "whole"
    warm_up(["train", str(recipe), "--output", str(run), "--quiet"])
    warm_up(["merge", str(run), "--output", str(place / "warm"), "--quiet"])
    assert in_a_fork(["merge", str(run), "--output", str(whole), "--quiet"])[0] == 0
    counted = place / "counted"
    counted.mkdir()
    report["calls"] = count_calls(["merge", str(run), "--output", str(counted / "merged"), "--quiet"], counted)
    for point in range(list(KINDS).index(kind) % stride, report["calls"], stride):
        output = place / f"point-{point}" / "merged"
        output.parent.mkdir()
        arguments = ["merge", str(run), "--output", str(output), "--quiet"]
        meet(arguments, output.parent, kind, point, report)
        if not output.exists():
            code, text = in_a_fork(arguments)
            assert code == 0, (kind, point, text)
        assert contents(output) == contents(whole), (kind, point)
        assert not list(output.parent.glob(".tmp-*")), (kind, point)
        shutil.rmtree(output.parent)


def main() -> None:
    job, kind, place, *rest = sys.argv[1:]
    torch.set_num_threads(1)
    report: dict[str, Any] = {"job": job, "kind": kind, "calls": 0, "points": 0, "codes": {}}
    points = {"train": train_points, "replace": replace_points, "merge": merge_points}[job]
    points(kind, Path(place), int(rest[0]) if rest else 1, report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
