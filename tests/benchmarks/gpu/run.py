"""Everything that only a GPU can show, within minutes: each part in a process of its own, with a time of its own.

    make gpu                                          the checkout's own .venv, on the GPU
    make gpu DEVICE=cpu                               the same on a CPU, at tiny sizes
    make gpu PYTHON=python3 WHEELS=build/wheels       where nothing can be installed: an existing Python that has torch,
                                                      and what it lacks from a folder that `make gpu-wheels` has filled
    python3 tests/benchmarks/gpu/run.py --only main_bf16,methods

Parts are the files of `parts/`, begun in the order of their `WORTH`; one that is timed (`ALONE`) has the machine to
itself, the others share it. One that fails, hangs or dies hides nothing of the others: it shows in the table and in the
exit code. The JSON is written anew after every part: machine, driver, versions, commit, and of every part its outcome
and figures, those that came before it failed included.

This file needs nothing but Python.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(HERE))

import wheels  # noqa: E402  (a neighbour, found through the path)

BUDGET_SECONDS = 470.0
"""Of the eight minutes that the whole may take; what is not done by then is ended, or not begun, and told as such."""
LANES = {"cuda": 3, "cpu": 2}
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "triton", "peft", "bitsandbytes",
            "pytorch-optimizer", "pydantic")  # fmt: skip
PASSED, NOT_BEGUN, INTERRUPTED = "passed", "not begun", "interrupted"
INTERRUPTED_CODE = 130
GRACE_SECONDS = 2.0
KILL_SECONDS = 10.0
"""How long a killed process is waited for: one that a driver holds may never go."""
LOG_CHARACTERS = 6000


@dataclass(frozen=True)
class Part:
    """A file of `parts/`: what the driver must know of it without importing it."""

    path: Path
    worth: int
    seconds: float
    alone: bool

    @property
    def name(self) -> str:
        return self.path.stem


def find_parts(folder: Path, only: list[str]) -> list[Part]:
    """The parts of a folder, most worthy first. `only`: these alone; SystemExit for a name that is none."""
    found = sorted(map(read_part, sorted(folder.glob("[!_]*.py"))), key=lambda part: (part.worth, part.name))
    unknown = set(only) - {part.name for part in found}
    if unknown:
        raise SystemExit(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in found)}")
    return [part for part in found if not only or part.name in only]


def read_part(path: Path) -> Part:
    """Its constants, read and not run."""
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper()
        and node.targets[0].id in ("WORTH", "SECONDS", "ALONE")
    }  # fmt: skip
    return Part(path, constants["WORTH"], float(constants["SECONDS"]), bool(constants.get("ALONE", False)))


@dataclass
class Running:
    """A part's process, its result file and its log."""

    part: Part
    folder: Path
    environment: dict[str, str]
    device: str
    size: str
    end: float
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.result = self.folder / "result.json"
        command = [sys.executable, str(HERE / "part.py"), str(self.part.path), str(self.result)]
        with (self.folder / "log.txt").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--device", self.device, "--size", self.size],
                cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def outcome(self) -> dict[str, Any] | None:
        """What it found once it has ended, or has used up its time and is ended here; None while it runs."""
        code, seconds = self.process.poll(), time.monotonic() - self.began
        allowed = min(self.part.seconds, self.end - self.began)
        overdue = code is None and seconds > allowed
        if code is None and not overdue:
            return None
        self.end_now()
        found = self._told()
        if overdue:
            found |= {"outcome": "timed out", "error": f"still running after {allowed:.0f} s"}
        elif "outcome" not in found or (code != 0 and found["outcome"] == PASSED):
            found |= {"outcome": "crashed", "error": f"{_ending(code)}: {self._last_lines()}"}
        return self._closed(found, seconds)

    def interrupted(self) -> dict[str, Any]:
        """What it found until now; ends it."""
        self.end_now()
        told = {"outcome": INTERRUPTED, "error": "the whole was interrupted"}
        return self._closed(self._told() | told, time.monotonic() - self.began)

    def _told(self) -> dict[str, Any]:
        if not self.result.is_file():
            return {"figures": {}}
        return dict(json.loads(self.result.read_text(encoding="utf-8")))

    def _closed(self, found: dict[str, Any], seconds: float) -> dict[str, Any]:
        if found["outcome"] != PASSED:
            found["log"] = (self.folder / "log.txt").read_text(errors="replace")[-LOG_CHARACTERS:]
        shutil.rmtree(self.folder, ignore_errors=True)
        return {"part": self.part.name, **found, "seconds": round(seconds, 1)}

    def end_now(self) -> None:
        """Ends what the part has started, itself included: it leads a group of its own."""
        for number, wait in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
            try:
                os.killpg(self.process.pid, number)
            except (ProcessLookupError, PermissionError):
                break
            if self.process.poll() is not None:
                continue
            try:
                self.process.wait(wait)
            except subprocess.TimeoutExpired:
                continue

    def _last_lines(self) -> str:
        lines = (self.folder / "log.txt").read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:])[-400:] or "it said nothing"


def _ending(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


class Session:
    """All parts, one after the other or side by side, and the JSON that grows with them."""

    def __init__(self, options: argparse.Namespace, parts: list[Part], environment: dict[str, str]) -> None:
        self.options, self.waiting, self.environment = options, list(parts), environment
        self.order = [part.name for part in parts]
        self.running: list[Running] = []
        self.results: list[dict[str, Any]] = []
        self.began = time.monotonic()
        self.end = self.began + options.budget
        self.facts = facts(options.device, environment, options.commit)

    def run(self) -> None:
        self.write()
        while self.waiting or self.running:
            self._begin()
            ended = [(one, found) for one in self.running if (found := one.outcome()) is not None]
            for one, found in ended:
                self.running.remove(one)
                self._take(found)
            if not ended:
                time.sleep(0.05)

    def _begin(self) -> None:
        while self.waiting and self._may_begin(self.waiting[0]):
            part = self.waiting.pop(0)
            if time.monotonic() > self.end:
                error = f"the {self.options.budget:.0f} s for the whole were used up"
                self._take({"part": part.name, "outcome": NOT_BEGUN, "error": error, "figures": {}, "seconds": 0.0})
                continue
            folder = self.options.work / part.name
            shutil.rmtree(folder, ignore_errors=True)
            self.running.append(
                Running(part, folder, self.environment, self.options.device, self.options.size, self.end)
            )

    def _may_begin(self, part: Part) -> bool:
        if not self.running:
            return True
        return (
            not part.alone
            and not any(one.part.alone for one in self.running)
            and len(self.running) < self.options.lanes
        )

    def interrupt(self) -> None:
        """Ends what runs; every part is told, with the figures that there are."""
        for one in self.running:
            self._take(one.interrupted())
        for part in self.waiting:
            error = "the whole was interrupted before"
            self._take({"part": part.name, "outcome": NOT_BEGUN, "error": error, "figures": {}, "seconds": 0.0})
        self.running, self.waiting = [], []

    def _take(self, found: dict[str, Any]) -> None:
        self.results.append(found)
        self.results.sort(key=lambda one: self.order.index(one["part"]))
        print(f"{found['part']:<16} {found['outcome']:<11} {found['seconds']:6.1f} s", file=sys.stderr, flush=True)
        self.write()

    @property
    def document(self) -> dict[str, Any]:
        return {**self.facts, "seconds": round(time.monotonic() - self.began, 1), "parts": self.results}

    def write(self) -> None:
        temporary = self.options.output.with_suffix(".part")
        temporary.write_text(json.dumps(_plain(self.document), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(self.options.output)


def _plain(value: Any) -> Any:
    """The same without numbers that JSON does not have: a loss may be none."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def facts(device: str, environment: dict[str, str], commit: str | None) -> dict[str, Any]:
    """Card, driver, versions and commit, without importing what is to be tried."""
    return {
        "device": device,
        "card": _cards() if device == "cuda" else platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": _versions(environment),
        "commit": commit or _commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cards() -> list[dict[str, str]]:
    names = ("name", "driver_version", "memory.total")
    try:
        command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return [{"name": f"unknown: {error}"}]
    return [dict(zip(names, map(str.strip, line.split(",")), strict=False)) for line in text.splitlines()]


def _versions(environment: dict[str, str]) -> dict[str, str]:
    path = [*environment.get("PYTHONPATH", "").split(os.pathsep), *sys.path]
    found = {}
    for name in PACKAGES:
        there = next(iter(metadata.distributions(name=name, path=path)), None)
        if there is not None:
            found[name] = there.version
    return found


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which("git") else None
    return done.stdout.strip() if done is not None and done.returncode == 0 else "unknown: not a checkout"


def surroundings(options: argparse.Namespace) -> dict[str, str]:
    """What the parts find: the checkout first, then packages that were carried here, no hub, their share of the CPUs."""
    paths = [str(ROOT)]
    if options.wheels is not None:
        site = options.work / "site"
        print(wheels.install(options.wheels, site), file=sys.stderr, flush=True)
        paths.append(str(site))
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    threads = max(1, len(os.sched_getaffinity(0)) // options.lanes)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(threads),
        "PEFTCLI_CACHE": str(options.work / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def table(document: dict[str, Any]) -> str:
    """One line a part: outcome, seconds, and what it has to say."""
    width = max((len(one["part"]) for one in document["parts"]), default=4)
    lines = [
        f"{'part':<{width}}  outcome      seconds  what was found",
        f"{'-' * width}  -----------  -------  {'-' * 60}",
    ]
    for one in document["parts"]:
        said = str(one.get("summary" if one["outcome"] == PASSED else "error") or "")
        lines.append(
            f"{one['part']:<{width}}  {one['outcome']:<11}  {one['seconds']:7.1f}  {' '.join(said.split())[:200]}"
        )
    failed = [one["part"] for one in document["parts"] if one["outcome"] != PASSED]
    last = (
        f"{len(failed)} of {len(document['parts'])} parts did not pass: {', '.join(failed)}" if failed else "all passed"
    )
    return "\n".join([*lines, "", f"{last}; {document['seconds']:.0f} s on {document['device']}"])


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), help="default: full on a GPU, tiny on a CPU")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu" / "result.json", help="the JSON")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu" / "work", help="where the parts work")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels for what this Python lacks")
    parser.add_argument("--only", default="", help="parts, separated by commas")
    parser.add_argument("--parts", type=Path, default=HERE / "parts", help="another folder of parts")
    parser.add_argument("--lanes", type=int, help="parts side by side, where they are not timed")
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS, help="seconds after which no part begins")
    parser.add_argument("--commit", help="where this is not a checkout")
    options = parser.parse_args(arguments)
    options.size = options.size or ("full" if options.device == "cuda" else "tiny")
    options.lanes = options.lanes or LANES[options.device]
    options.output, options.work = options.output.resolve(), options.work.resolve()
    if options.wheels is not None and options.commit is None:
        options.commit = wheels.commit_of(options.wheels)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts; 0 where all passed, else 1, or 130 where it was told to end before."""
    options = read_options(arguments)
    parts = find_parts(options.parts.resolve(), [name for name in options.only.split(",") if name])
    for folder in (options.output.parent, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    session = Session(options, parts, surroundings(options))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    code = _run_through(session)
    print(table(session.document))
    print(f"\n{options.output}")
    return code


def _run_through(session: Session) -> int:
    try:
        session.run()
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # nothing of ours is to be left behind
        session.interrupt()
        return INTERRUPTED_CODE
    finally:
        for one in session.running:
            one.end_now()
    return 0 if all(one["outcome"] == PASSED for one in session.results) and session.results else 1


if __name__ == "__main__":
    sys.exit(main())
