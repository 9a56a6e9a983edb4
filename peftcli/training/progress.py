"""Progress of a run: a Rich bar with loss, tokens a second and ETA on a terminal, plain lines elsewhere; on stderr."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from peftcli.streams import painting, tell
from peftcli.training.interfaces import Metrics
from peftcli.visible import reveal

PLAIN_SECONDS = 10.0


class TrainingProgress(Protocol):
    """What the loop tells while it runs."""

    def start(self, step: int, total_steps: int) -> None:
        """Training begins, or goes on, after `step` of `total_steps`."""

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        """A step was taken, with its loss in nats; the speed is that of the run so far."""

    def evaluating(self, doing: str, done: int, total: int) -> None:
        """Rows of an evaluation that are scored or answered; `doing` says which."""

    def evaluated(self, step: int, metrics: Metrics) -> None:
        """An evaluation at `step` has ended."""

    def say(self, text: str) -> None:
        """A line that stays on the screen, such as a warning."""

    def stop(self) -> None:
        """Leaves the screen as it was; called however training ends."""


class NoProgress(TrainingProgress):
    """Says nothing (`--quiet`)."""

    def start(self, step: int, total_steps: int) -> None: ...

    def step(self, step: int, loss: float, tokens_per_second: float) -> None: ...

    def evaluating(self, doing: str, done: int, total: int) -> None: ...

    def evaluated(self, step: int, metrics: Metrics) -> None: ...

    def say(self, text: str) -> None: ...

    def stop(self) -> None: ...


class PlainProgress(TrainingProgress):
    """Lines for a log file: the first and the last step, and one every ten seconds."""

    def __init__(self) -> None:
        self._total_steps = 0
        self._spoken = 0.0
        self._started = 0.0
        self._first_step = 0
        self._evaluated_rows = 0
        self._evaluation_told = 0.0

    def start(self, step: int, total_steps: int) -> None:
        # zero, so that the first step is always told
        self._total_steps, self._first_step, self._started, self._spoken = total_steps, step, time.monotonic(), 0.0

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        now = time.monotonic()
        # the last step too, whatever the time
        if now - self._spoken < PLAIN_SECONDS and step != self._total_steps:
            return
        self._spoken = now
        line = f"step {step}/{self._total_steps}  loss {loss:.4f}"
        # the first steps are slow, and not measured
        if tokens_per_second:
            # of this process alone: steps before a resumption say nothing about the speed here
            seconds_left = (now - self._started) / max(1, step - self._first_step) * (self._total_steps - step)
            line += f"  {tokens_per_second:,.0f} tokens/s  ETA {_clock(seconds_left)}"
        self.say(line)

    def evaluating(self, doing: str, done: int, total: int) -> None:
        now = time.monotonic()
        # fewer rows than before, or none yet
        if self._evaluated_rows > done or not self._evaluation_told:
            # an evaluation begins: what it takes is known after a while only
            self._evaluation_told = now
        self._evaluated_rows = done
        if now - self._evaluation_told >= PLAIN_SECONDS and done < total:
            self._evaluation_told = now
            self.say(f"{doing}: {done}/{total} rows")

    def evaluated(self, step: int, metrics: Metrics) -> None:
        self.say(f"step {step}  {_listed(metrics)}")

    def say(self, text: str) -> None:
        tell(text)

    def stop(self) -> None: ...


class RichProgress(TrainingProgress):
    """A live bar."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]} tokens/s"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            transient=False,
        )
        self._task = self._progress.add_task("train", total=None, loss="-", speed="-")
        self._evaluation: TaskID | None = None

    def start(self, step: int, total_steps: int) -> None:
        self._progress.start()
        self._progress.update(self._task, total=total_steps, completed=step)

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        self._progress.update(self._task, completed=step, loss=f"{loss:.4f}", speed=f"{tokens_per_second:,.0f}")

    def evaluating(self, doing: str, done: int, total: int) -> None:
        if self._evaluation is None:
            self._evaluation = self._progress.add_task(doing, total=total, loss="-", speed="-")
        self._progress.update(self._evaluation, description=doing, completed=done, total=total)
        if done >= total:
            self._progress.remove_task(self._evaluation)
            self._evaluation = None

    def evaluated(self, step: int, metrics: Metrics) -> None:
        self.say(f"step {step}  {_listed(metrics)}")

    def say(self, text: str) -> None:
        self._progress.console.print(reveal(text), markup=False, highlight=False)

    def stop(self) -> None:
        self._progress.stop()


def build_progress(*, quiet: bool = False) -> TrainingProgress:
    """The bar on a terminal, plain lines elsewhere, nothing with `quiet`."""
    if quiet:
        return NoProgress()
    # checked for a terminal through the guarded stream, which knows where it ends
    console = Console(file=painting(sys.stderr))
    return RichProgress(console) if console.is_terminal else PlainProgress()


def _listed(metrics: Metrics) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
