"""Learning-rate schedules: pure functions from the step to a factor of the peak rate; resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable

from peftcli.training.config import (
    ConstantConfig,
    CosineConfig,
    CosineWithRestartsConfig,
    LinearConfig,
    PolynomialConfig,
    SchedulerConfig,
    TrainingConfig,
    WSDConfig,
)

Schedule = Callable[[int], float]


def build_schedule(config: SchedulerConfig, *, total_steps: int, warmup_steps: int) -> Schedule:
    """Returns `factor(step)` for steps 1 to `total_steps`: a linear warm-up to 1, then the shape of `config`.

    The first step already moves, and the first step after the warm-up is the first at the peak.
    """
    shape = _shape(config, total_steps)

    def factor(step: int) -> float:
        done = step - 1
        if done < warmup_steps:
            # the first step is not at zero, and the peak comes right after the warm-up
            return (done + 1) / (warmup_steps + 1)
        return shape((done - warmup_steps) / max(1, total_steps - warmup_steps), step)

    return factor


def schedule_of(config: TrainingConfig, total_steps: int) -> Schedule:
    """`factor(step)` of a whole run: of one length, or of each that it had, in turn."""
    lengths = config.lengths
    totals = [*(part.planned for part in lengths), total_steps]
    parts = [
        build_schedule(config.scheduler, total_steps=total, warmup_steps=config.num_warmup_steps(total))
        for total in totals
    ]

    def factor(step: int) -> float:
        number = sum(part.after < step for part in lengths)
        if number and lengths[number - 1].schedule == "constant":
            return factor(lengths[number - 1].after)
        return parts[number](step)

    return factor


def _shape(config: SchedulerConfig, total_steps: int) -> Callable[[float, int], float]:
    match config:
        case ConstantConfig():
            return lambda progress, step: 1.0
        case LinearConfig():
            return lambda progress, step: _above(config.min_ratio, 1.0 - progress)
        case CosineConfig():
            return lambda progress, step: _above(config.min_ratio, _half_cosine(progress))
        case PolynomialConfig():
            return lambda progress, step: _above(config.min_ratio, max(0.0, 1.0 - progress) ** config.power)
        case CosineWithRestartsConfig():
            return lambda progress, step: _above(
                # the very last step is the end of the last cycle, not the start of another
                config.min_ratio,
                _half_cosine(min(progress, 1.0 - 1e-12) * config.num_cycles % 1.0),
            )
        case WSDConfig():
            return lambda progress, step: _wsd(config, step, total_steps)


def _above(floor: float, factor: float) -> float:
    # clipped: a run that was made longer may ask beyond the planned end
    return floor + (1.0 - floor) * min(1.0, max(0.0, factor))


def _half_cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def _wsd(config: WSDConfig, step: int, total_steps: int) -> float:
    decay_steps = config.num_decay_steps(total_steps)
    # the decay ends with the run, whatever the warm-up took
    progress = (step - 1 - (total_steps - decay_steps)) / decay_steps
    if progress <= 0.0:
        return 1.0
    shapes = {"linear": 1.0 - progress, "cosine": _half_cosine(progress), "sqrt": 1.0 - math.sqrt(progress)}
    return _above(config.min_ratio, shapes[config.decay])
