"""A whole run, small enough to be repeated at hundreds of points, and what must be true of it in the end."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import peftcli
from peftcli import files
from peftcli.cli.entry import run as peft
from peftcli.training.stepper import Stepper

ROOT = Path(__file__).parents[2]
RECIPE = """
model: builtin:tiny
data: {train: {path: builtin:support, rows: 10}, validation: 3, max_length: 160}
method: METHOD
training: {max_steps: 3, batch_size: 4, micro_batch_size: 2, learning_rate: 2e-3}
evaluation: {every: 2, samples: 0, rows: 3}
checkpoint: {every: 1, keep: 1}
threads: 1
"""
PROMPT = "{type: prompt_tuning, num_virtual_tokens: 2}"
LORA = "{type: lora, r: 1, target_modules: [q_proj]}"


def write_recipe(folder: Path, method: str = PROMPT) -> Path:
    path = folder / "small.yaml"
    path.write_text(RECIPE.replace("METHOD", method), encoding="utf-8")
    return path


def commit_seed(purpose: str) -> random.Random:
    """A generator that every commit seeds anew; outside of a checkout always the same."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    commit = found.stdout.strip() if found.returncode == 0 else "no commit"
    return random.Random(hashlib.sha256(f"{commit}/{purpose}".encode()).digest())


def draw(points: Sequence[int], count: int, purpose: str) -> list[int]:
    """`count` of the points, one from each of as many equal stretches, so that every phase of a run is met."""
    generator, count = commit_seed(purpose), min(count, len(points))
    bounds = [len(points) * number // count for number in range(count + 1)]
    return [points[generator.randrange(low, high)] for low, high in itertools.pairwise(bounds)]


@contextlib.contextmanager
def one_cpu() -> Iterator[None]:
    """Inside, `auto` means one thread: a process that has used more cannot be forked by a child that uses more."""
    before = os.sched_getaffinity(0)
    # each worker of the tests has a CPU of its own
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    os.sched_setaffinity(0, {sorted(before)[int(worker) % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Child:
    """A fork of this warm process that runs one command of ours, on a given disk or after `arm`."""

    def __init__(
        self, arguments: Sequence[str], disk: files.Disk | None = None, arm: Callable[[], object] | None = None
    ) -> None:
        reader, writer = os.pipe()
        # what this process has to collect no child looks through, page by page
        gc.freeze()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            code = 1
            try:
                files.disk = disk or files.Disk()
                if arm is not None:
                    arm()
                with one_cpu():
                    code = peft(list(arguments))
            finally:
                os._exit(code)
        gc.unfreeze()
        os.close(writer)
        self._reader = reader

    def work(self, most: float = math.inf) -> float:
        """Waits until it ends or has computed for so many seconds; returns how many those were, of its own threads.

        Not of the processes that it waits for, whose work counts only when they have ended.
        """
        done = 0.0
        while done < most and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            done = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            time.sleep(0.002)
        return done

    def end(self) -> tuple[int, str]:
        """Exit status (minus the signal's number for a killed one) and everything that it printed."""
        with os.fdopen(self._reader, encoding="utf-8", errors="replace") as output:
            text = output.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), text


Command = Callable[[Sequence[str]], tuple[int, str]]


def in_a_fork(arguments: Sequence[str]) -> tuple[int, str]:
    return Child(arguments).end()


def of_this_checkout() -> dict[str, str]:
    """The environment of a process that takes the very package which this process tests, whatever is installed."""
    paths = [str(Path(peftcli.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def in_a_process(arguments: Sequence[str], program: Sequence[str] = ("-m", "peftcli")) -> tuple[int, str]:
    """The command as a user starts it, or through another program."""
    command = [sys.executable, *program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=of_this_checkout())
    return done.returncode, done.stdout + done.stderr


def go_on(recipe: Path, folder: Path, command: Command = in_a_fork) -> str:
    """What a script does after any failure: resume, or train where no run had begun. Returns the command that did."""
    code, text = command(["resume", str(folder), "--quiet"])
    if code == 0:
        return "resume"
    assert code == 7, text
    assert "no run to resume" in text, text
    code, text = command(["train", str(recipe), "--output", str(folder), "--quiet"])
    assert code == 0, text
    return "train"


def losses(folder: Path) -> dict[int, str]:
    """Loss of each step in hex; after a resume the last value of a step counts."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: float(line["loss"]).hex() for line in lines if line["event"] == "train"}


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def require_whole(folder: Path, expected: Path, point: object) -> None:
    """The run is complete, equal to the undisturbed one byte for byte, and nothing is left lying about."""
    assert adapter_bytes(folder) == adapter_bytes(expected), point
    assert losses(folder) == losses(expected), point
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    wanted = {str(path.relative_to(expected)) for path in expected.rglob("*") if path.is_file()}
    assert names == wanted, (point, names ^ wanted)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "completed", point
    assert record["steps"] == 3, point
    assert not [*folder.parent.glob(".tmp-*"), *folder.rglob(".tmp-*")], point


def expected_codes(kind: str) -> set[int]:
    """How a command may end that meets a fault of this kind."""
    if kind.startswith("kill"):
        return {-signal.SIGKILL}
    return {0} if kind == "short write" else {6}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def at_step(step: int, act: Callable[[], object]) -> Callable[[], None]:
    """For `Child(arm=...)`: what happens while a step is taken, just before it counts as done."""

    def arm() -> None:
        take = Stepper.train_step

        def acting(self: Stepper) -> None:
            take(self)
            if self.keeper.state.step == step:
                act()

        Stepper.train_step = acting  # type: ignore[method-assign]

    return arm


def send(number: int) -> Callable[[], None]:
    """Sends a signal to the process itself."""
    return lambda: os.kill(os.getpid(), number)
