"""Guards: what stops a run, or warns, when its numbers go wrong. Each looks; the loop acts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from peftcli.errors import NumericalError

SKIP_LIMIT = 3
"""Steps of the last `SKIP_WINDOW` that may be left out; with more, the run is broken and not a batch."""
SKIP_WINDOW = 100
SCALER_SKIP_LIMIT = 20
"""fp16 overflows in a row: each halves the scale, and torch's first one, 2 ** 16, is below 1 by then."""
LIVENESS_STEPS = 3
EFFECT_STEPS = 50
SPIKE_WINDOW = 64
SPIKE_MINIMUM = 16
SPIKE_DEVIATIONS = 6.0
SPIKE_RATIO = 1.5
SPIKE_NATS = 0.1


class LivenessWatch:
    """Watches the first steps: every trainable tensor must receive a finite gradient that is not zero.

    Many a method starts with a factor at zero (LoRA's B), behind which every other gradient is zero until that factor
    has moved: a run of one step is judged by less, that its tensors take part in the loss and what reaches them is finite.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], exempt: frozenset[str] = frozenset(), *, still_steps: int = 0
    ) -> None:
        """`still_steps`: first steps of the optimizer that move nothing."""
        self._pending = {name: parameter for name, parameter in parameters.items() if name not in exempt}
        self._steps_left = LIVENESS_STEPS + still_steps

    def observe(self, *, last: bool) -> None:
        """Call after each backward pass whose gradients are used; raises `NumericalError` naming the idle tensors."""
        if self._steps_left == 0:
            return
        # a run of one step has moved nothing before its only look
        nothing_moved_yet = last and self._steps_left >= LIVENESS_STEPS
        self._steps_left = 0 if last else self._steps_left - 1
        alive = _alive(self._pending, above=-1.0 if nothing_moved_yet else 0.0)
        self._pending = {name: parameter for name, parameter in self._pending.items() if name not in alive}
        if self._steps_left == 0 and self._pending:
            names = sorted(self._pending)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise NumericalError(
                f"no gradient reached {len(names)} trainable tensors: {', '.join(names[:5])}{more}",
                fix="check target_modules: these layers do not take part in the loss",
            )


class EffectWatch:
    """Watches that the adapter changes the model's output.

    In half precision the first small steps may round away, so an adapter without effect is looked at again later, and
    is an error only after the warm-up.
    """

    def __init__(self, changes_output: Callable[[], bool], *, warmup_steps: int, total_steps: int) -> None:
        self._changes_output = changes_output
        # twice the warm-up: half-way up, a rate is too small for some methods to show
        self._last_step = min(total_steps, max(EFFECT_STEPS, 2 * warmup_steps))
        self._next_step = min(LIVENESS_STEPS, total_steps)
        self._settled = False

    def observe(self, step: int) -> None:
        """Call after each update; raises `NumericalError` when the last look finds no effect."""
        if self._settled or (step < self._next_step and step < self._last_step):
            return
        self._settled = self._changes_output()
        # each look costs forward passes: twice as far apart each time, there are only a few
        self._next_step = 2 * step
        if not self._settled and step >= self._last_step:
            raise NumericalError(
                f"after {step} steps the adapter does not change the model's output",
                fix="raise the learning rate; check the method's scaling and targets",
            )


def _alive(parameters: Mapping[str, nn.Parameter], *, above: float) -> set[str]:
    """Names of the parameters whose gradient is finite and in size above a bound; waits for the device once, not once
    a tensor."""
    # sizes of all tensors in one go, so that the device is waited for once
    sizes = {name: p.grad.detach().abs().max().float() for name, p in parameters.items() if p.grad is not None}
    values = torch.stack(list(sizes.values())).tolist() if sizes else []
    return {name for name, size in zip(sizes, values, strict=True) if math.isfinite(size) and size > above}


def non_finite_gradients(parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Names of the tensors whose gradient holds NaN or infinity."""
    return [
        name
        for name, parameter in parameters.items()
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
    ]


def non_finite_tensors(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the floating-point tensors that hold NaN or infinity."""
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]


def spike_message(losses: Sequence[float]) -> str | None:
    """A warning where the newest loss stands out from the window before it, and none of that window did; else None."""
    spike = _spike(losses)
    if spike is None:
        return None
    recent = range(max(1, len(losses) - SPIKE_WINDOW), len(losses))
    # a plateau of high losses is one event: only its first step is told
    if any(_spike(losses[max(0, end - SPIKE_WINDOW - 1) : end]) is not None for end in recent):
        return None
    middle, width = spike
    return f"the loss jumped to {losses[-1]:.4g}; the median of the last {width} steps is {middle:.4g}"


def _spike(losses: Sequence[float]) -> tuple[float, int] | None:
    """Median and size of the window that the newest loss stands out from, by median absolute deviations."""
    # the window does not hold the newest loss, which it is compared with
    *before, newest = losses[-SPIKE_WINDOW - 1 :]
    window = [loss for loss in before if math.isfinite(loss)]
    if len(window) < SPIKE_MINIMUM or not math.isfinite(newest):
        return None
    middle = statistics.median(window)
    deviation = statistics.median(abs(loss - middle) for loss in window)
    # medians, since one earlier spike would widen a standard deviation enough to hide the next
    # of a task that is as good as solved, one hard row would else be a spike
    least = max(SPIKE_DEVIATIONS * deviation, (SPIKE_RATIO - 1) * middle, SPIKE_NATS)
    return (middle, len(window)) if newest > middle + least else None


def too_many_skips(skipped_steps: Sequence[int], step: int) -> bool:
    """Whether more than three steps of the last hundred were skipped."""
    return sum(1 for skipped in skipped_steps if skipped > step - SKIP_WINDOW) > SKIP_LIMIT
