"""The results of a finished run as a lock expects them, read from its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.lock.document import RunTrace
from peftcli.reports.series import metrics_lines

MAX_KEPT_STEPS = 2000


@dataclass(frozen=True)
class Step:
    """One optimizer step: exact numbers, and digests of its data and of its random draws."""

    loss: float
    grad_norm: float
    batch: str
    draws: str


def hex_of(value: float) -> str:
    """`float.hex` without the zeros at its end: exact and short."""
    mantissa, exponent = value.hex().split("p") if math.isfinite(value) else (value.hex(), "")
    return f"{mantissa.rstrip('0').rstrip('.')}p{exponent}" if exponent else mantissa


def read_steps(path: Path) -> dict[int, Step]:
    """The steps of `metrics.jsonl`; after a resume the last line of a step counts."""
    found = {}
    for line in metrics_lines(path):
        if line is None:
            continue  # torn by a crash; the step was taken again
        numbers = [line.get(name) for name in ("loss", "grad_norm")]
        if line.get("event") == "train" and all(isinstance(number, (int, float)) for number in numbers):
            loss, norm = (float(number) for number in numbers if number is not None)
            found[int(line["step"])] = Step(loss, norm, str(line.get("batch", "")), str(line.get("draws", "")))
    return dict(sorted(found.items()))


def kept_steps(total: int) -> list[int]:
    """Which steps of a long run a lock keeps: the first half of the room one by one, then evenly, and the last."""
    if total <= MAX_KEPT_STEPS:
        return list(range(1, total + 1))
    dense = MAX_KEPT_STEPS // 2
    # rounded up, so that the second half never takes more than its room
    every = math.ceil((total - dense) / dense)
    return [*range(1, dense + 1), *range(dense + every, total, every), total]


def steps_taken(losses: Sequence[float], lines: Sequence[Mapping[str, Any] | None], logged: Path) -> dict[int, Step]:
    """The steps of a run as it knows them itself; of those that an older version took, what `logged` says."""
    known = dict(read_steps(logged)) if any(line is None for line in lines) else {}
    for step, (loss, line) in enumerate(zip(losses, lines, strict=True), start=1):
        if line is not None and math.isfinite(loss) and math.isfinite(line["grad_norm"]):
            known[step] = Step(loss, line["grad_norm"], str(line.get("batch", "")), str(line.get("draws", "")))
        # logged by a run that was continued since: the loss that the run keeps is another step's
        elif step in known and known[step].loss != loss:
            del known[step]
    return known


def run_trace(folder: Path, taken: Mapping[int, Step], *, seed: int, steps: int, adapter_step: int | None) -> RunTrace:
    """What the run in `folder` did, which took these steps."""
    adapter = folder / "adapter" / "adapter_model.safetensors"
    return trace_of(
        taken,
        seed=seed,
        steps=steps,
        adapter_step=adapter_step,
        adapter_sha256=files.sha256_file(adapter) if adapter.is_file() else None,
    )


def trace_of(
    taken: Mapping[int, Step],
    *,
    seed: int,
    steps: int,
    adapter_step: int | None = None,
    adapter_sha256: str | None = None,
) -> RunTrace:
    """A trace from steps."""
    kept = kept_steps(steps)
    found: Sequence[Step | None] = [taken.get(step) for step in kept]
    return RunTrace(
        seed=seed,
        steps=steps,
        kept=None if len(kept) == steps else kept,
        loss=[None if step is None else hex_of(step.loss) for step in found],
        grad_norm=[None if step is None else hex_of(step.grad_norm) for step in found],
        batch=[None if step is None else step.batch for step in found],
        draws=[None if step is None else step.draws for step in found],
        adapter_step=adapter_step,
        adapter_sha256=adapter_sha256,
    )


def steps_of(trace: RunTrace) -> dict[int, Step | None]:
    """The steps that a trace keeps; None for one that was skipped."""
    numbers = trace.kept or range(1, trace.steps + 1)
    return {
        number: None
        if loss is None or norm is None
        else Step(float.fromhex(loss), float.fromhex(norm), batch or "", draws or "")
        for number, loss, norm, batch, draws in zip(
            numbers, trace.loss, trace.grad_norm, trace.batch, trace.draws, strict=True
        )
    }
