"""What one process measures of itself, the same way for every arm: times of optimizer steps, memory, start-up.

Nothing of peftcli or of a peer is imported here: an optimizer's step is seen through torch's own hook.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


def peak_bytes() -> int:
    """The most memory that this process ever held; not that of the process which started it."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _age_seconds() -> float:
    """Since this process began, imports of the interpreter included."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Meter:
    """Begins with the process; `watch_steps` after torch is there, `loaded` once the model is."""

    def __init__(self) -> None:
        self._loaded_bytes = 0
        self._ends: list[tuple[float, float]] = []
        self._first_step_seconds = 0.0

    def watch_steps(self) -> None:
        """Notes the clock after each optimizer step of this process, whoever takes it."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(self._step_ended)

    def _step_ended(self, *_: Any) -> None:
        if not self._ends:
            self._first_step_seconds = _age_seconds()
        self._ends.append((time.perf_counter(), _cpu_seconds()))

    def loaded(self) -> None:
        """The base model is in memory now: what comes on top counts as training's."""
        self._loaded_bytes = peak_bytes()

    def figures(self, tokens: list[int], warm_steps: int) -> dict[str, Any]:
        """Of one run; `tokens`: non-padding tokens of each optimizer step that was taken."""
        assert len(self._ends) == len(tokens), f"{len(self._ends)} optimizer steps seen, {len(tokens)} taken"
        (began, cpu_began), (ended, cpu_ended) = self._ends[warm_steps - 1], self._ends[-1]
        timed = sum(tokens[warm_steps:])
        return {
            "tokens_per_second": timed / (ended - began),
            "tokens_per_cpu_second": timed / (cpu_ended - cpu_began),
            "peak_over_loaded_bytes": peak_bytes() - self._loaded_bytes,
            "peak_bytes": peak_bytes(),
            "first_step_seconds": self._first_step_seconds,
            "timed_tokens": timed,
            "timed_steps": len(tokens) - warm_steps,
        }


def read_job() -> dict[str, Any]:
    """The job that this process was started with: `python ARM.py JOB.json`."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return job


def write_result(job: dict[str, Any], **figures: Any) -> None:
    """What the driver reads once this process has ended."""
    Path(job["result"]).write_text(json.dumps(figures), encoding="utf-8")
