"""Two traces side by side: the highest level at which they are the same, and the first step at which they part."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftcli.lock.bands import DEFAULT_SHARE, around
from peftcli.lock.differences import Difference
from peftcli.lock.document import Band, Expected, Lock, RunTrace
from peftcli.lock.environment import can_equal_bytes
from peftcli.lock.trace import Step, steps_of
from peftcli.reproduce.result import ComparedPart, Level, Parting, SeedResult

TOLERANCE_FP32_CPU = 1e-4
TOLERANCE = 1e-3
EARLY_STEPS = 5
"""Steps in which rounding cannot have grown: there the tolerance holds on every machine."""
# a step's forward and backward round each number by 1e-7; half precision (8 bits of mantissa) by 4e-3
ROUNDING_FP32 = 1e-4
ROUNDING_HALF = 3e-2
"""A larger relative difference at equal weights and equal data is no rounding: something was drawn."""


@dataclass(frozen=True)
class Terms:
    """On what the comparison of two runs rests."""

    wanted: Level
    tolerance: float
    rounding: float
    inputs: tuple[Difference, ...] = ()


def terms(locked: Lock, found: Lock, inputs: Sequence[Difference]) -> Terms:
    """The level that processor, threads and versions oblige to, and the tolerances of device and precision."""
    device = str(found.value("device"))
    same_numbers = locked.value("device") == device and locked.value("threads") == found.value("threads")
    wanted: Level = "metrics"
    if _public(locked.packages) == _public(found.packages):
        wanted = "trace"
        can_equal = can_equal_bytes(locked.environment, found.environment, device)
        if locked.packages == found.packages and same_numbers and can_equal:
            wanted = "bytes"
    fp32 = found.value("training.precision") == "fp32"
    return Terms(
        wanted,
        TOLERANCE_FP32_CPU if fp32 and device == "cpu" else TOLERANCE,
        ROUNDING_FP32 if fp32 else ROUNDING_HALF,
        tuple(inputs),
    )


def _public(packages: Mapping[str, str]) -> dict[str, str]:
    """Versions without their local part: `2.13.0+cpu` and `2.13.0+cu128` are one version, built twice."""
    return {name: version.split("+")[0] for name, version in packages.items()}


def compare(
    locked: RunTrace, expected: Expected, found: RunTrace, metrics: Mapping[str, float | None] | None, terms: Terms
) -> SeedResult:
    """One run beside the locked one. `metrics`: of the tuned model; None where only the first steps were taken."""
    pairs = _pairs(locked, found)
    worst = max(((_distance(*pair), step) for step, pair in pairs.items()), default=(0.0, 0))
    findings = [*_step_findings(pairs, worst, terms)]
    exact = parting(pairs, terms, tolerance=0.0)
    equal_bytes = exact is None
    if metrics is not None:
        findings.append(_adapter(locked, found, terms))
        equal_bytes = equal_bytes and locked.adapter_sha256 == found.adapter_sha256
        findings += [] if locked.steps == found.steps else [_other_steps(locked, found)]
        # nothing compared is nothing reproduced: without metrics the losses speak
        scored = _own_bands(locked, expected)
        # equal weights that are scored otherwise are no equal run: something that the evaluation reads has changed
        equal_bytes = equal_bytes and all(metrics.get(name) == band[0] for name, (band, own) in scored.items() if own)
        bands = [
            # of a mean over seeds no single seed owes the value
            _band(name, band, metrics.get(name), exact=own and terms.wanted == "bytes")
            for name, (band, own) in scored.items()
        ] or [_mean_loss(pairs)]
    else:
        bands = [_mean_loss(pairs)]
    in_band = all(finding.passed for finding in bands)
    # a run that was stopped early is compared as far as it goes, but reproduces nothing
    whole = metrics is None or locked.steps == found.steps
    level = _level(equal_bytes, pairs, in_band, terms) if whole else None
    if level == "bytes" and any(item.kind != "package" for item in terms.inputs):
        # equal bytes of other inputs are not the same run again
        level = "trace"
    beyond = parting(pairs, terms, tolerance=terms.tolerance)
    return SeedResult(
        seed=found.seed,
        steps=len(pairs),
        wanted=terms.wanted,
        level=level,
        findings=(*findings, *bands),
        # bytes part at the first bit; at the looser levels, where the tolerance is left
        parting=exact if terms.wanted == "bytes" or level is None else beyond,
    )


def _pairs(locked: RunTrace, found: RunTrace) -> dict[int, tuple[Step | None, Step | None]]:
    """Every step that both keep; a step that one run has and the other has not is a pair with None."""
    one, other = steps_of(locked), steps_of(found)
    last = min(locked.steps, found.steps)
    return {step: (one[step], other.get(step)) for step in one if step <= last and step in other}


def _distance(one: Step | None, other: Step | None) -> float:
    """Largest relative difference of loss and gradient norm; infinite where only one of the two was skipped."""
    if one is None or other is None:
        return 0.0 if one is other else math.inf
    return max(_relative(one.loss, other.loss), _relative(one.grad_norm, other.grad_norm))


def _relative(one: float, other: float) -> float:
    if one == other:
        return 0.0
    # relative to the larger of the two, so that the order of the runs makes no difference
    found = abs(one - other) / max(abs(one), abs(other))
    return found if math.isfinite(found) else math.inf


def _loss_distance(one: Step | None, other: Step | None) -> float:
    if one is None or other is None:
        return 0.0 if one is other else math.inf
    return _relative(one.loss, other.loss)


# -- where two runs part -----------------------------------------------------------------------------------------


def parting(pairs: Mapping[int, tuple[Step | None, Step | None]], terms: Terms, *, tolerance: float) -> Parting | None:
    """The first step that differs; numbers by more than `tolerance`. None where none does."""
    equal_so_far = True
    for step, (one, other) in pairs.items():
        if one is None or other is None:
            if one is not other:
                return Parting(step, "numbers", "one of the two runs skipped this step")
            continue
        if one.batch and other.batch and one.batch != other.batch:
            detail = f"the batch differs: digest {other.batch} instead of {one.batch}{_changed(terms)}"
            return Parting(step, "data order", detail)
        if one.draws and other.draws and one.draws != other.draws:
            detail = f"same batch, other random draws: state {other.draws} instead of {one.draws}{_changed(terms)}"
            return Parting(step, "randomness", detail)
        distance = _distance(one, other) if tolerance == 0.0 else _relative(one.loss, other.loss)
        if distance > tolerance:
            return _numbers(step, one, other, equal_so_far, terms)
        # beyond the last bit only the loss decides: the norm of the gradient magnifies rounding
        equal_so_far = equal_so_far and distance == 0.0
    return None


def _numbers(step: int, one: Step, other: Step, equal_so_far: bool, terms: Terms) -> Parting:
    shown = _number_text(one, other)
    if changed := _changed(terms):
        return Parting(step, "numbers", f"same batch and draws; {shown}{changed}")
    # weights that were equal before this step have not drifted: what is too far for rounding was drawn
    if equal_so_far and terms.wanted == "bytes" and _distance(one, other) > terms.rounding:
        detail = f"same batch, equal weights before; {shown}: too far for rounding, so a draw that no seed governs"
        return Parting(step, "randomness", detail)
    return Parting(step, "numbers", f"same batch and draws; {shown}")


def _changed(terms: Terms) -> str:
    """The inputs that may have led there; empty where none differs."""
    return f"; inputs that differ: {', '.join(item.item for item in terms.inputs)}" if terms.inputs else ""


def _number_text(one: Step, other: Step) -> str:
    parts = [
        f"{name} {new:.9g} instead of {old:.9g}"
        for name, old, new in (("loss", one.loss, other.loss), ("gradient norm", one.grad_norm, other.grad_norm))
        if old != new
    ]
    return ", ".join(parts) or "equal numbers"


# -- what holds --------------------------------------------------------------------------------------------------


def _level(
    equal_bytes: bool, pairs: Mapping[int, tuple[Step | None, Step | None]], in_band: bool, terms: Terms
) -> Level | None:
    if equal_bytes and in_band:
        return "bytes"
    # a machine that owes the bytes has no excuse in a tolerance
    if terms.wanted == "bytes" or not in_band:
        return None
    if terms.wanted == "metrics":
        return "metrics"
    if not all(_same_course(*pair) for pair in pairs.values()):
        return None
    if all(_loss_distance(*pair) <= terms.tolerance for pair in pairs.values()):
        return "trace"
    # training amplifies the last bit, which another processor rounds differently; at first it cannot have
    early = [pair for step, pair in pairs.items() if step <= EARLY_STEPS]
    return "metrics" if all(_loss_distance(*pair) <= terms.tolerance for pair in early) else None


def _same_course(one: Step | None, other: Step | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.batch == other.batch and one.draws == other.draws


def _step_findings(
    pairs: Mapping[int, tuple[Step | None, Step | None]], worst: tuple[float, int], terms: Terms
) -> list[ComparedPart]:
    both = {step: (one, other) for step, (one, other) in pairs.items() if one is not None and other is not None}
    batches = [step for step, (one, other) in both.items() if one.batch != other.batch]
    draws = [step for step, (one, other) in both.items() if one.draws != other.draws]
    exact = all(_distance(*pair) == 0.0 for pair in pairs.values())
    loss = max(((_loss_distance(*pair), step) for step, pair in pairs.items()), default=(0.0, 0))
    # between versions order and draws may change for a reason; at the other levels they may not
    must = None if terms.wanted == "metrics" else False
    return [
        ComparedPart("data order", not batches or must, _equal_steps(batches, len(both))),
        ComparedPart("random draws", not draws or must, _equal_steps(draws, len(both))),
        ComparedPart(
            "loss and gradient norm",
            exact or (False if terms.wanted == "bytes" else True if loss[0] <= terms.tolerance else None),
            "bit for bit"
            if exact
            else f"loss within {loss[0]:.2g} relative (largest at step {loss[1]}), all within {worst[0]:.2g}",
        ),
    ]


def _equal_steps(differing: Sequence[int], total: int) -> str:
    if not differing:
        return f"equal in {total} of {total} steps"
    return f"differs in {len(differing)} of {total} steps, first in step {differing[0]}"


def _adapter(locked: RunTrace, found: RunTrace, terms: Terms) -> ComparedPart:
    if locked.adapter_sha256 == found.adapter_sha256:
        return ComparedPart("adapter", True, f"byte-equal ({str(found.adapter_sha256)[:12]}…)")
    must = False if terms.wanted == "bytes" else None
    detail = f"{str(found.adapter_sha256)[:12]}… instead of {str(locked.adapter_sha256)[:12]}…"
    return ComparedPart("adapter", must, detail)


def _other_steps(locked: RunTrace, found: RunTrace) -> ComparedPart:
    return ComparedPart("steps", False, f"{found.steps} taken, the lock has {locked.steps}: the rest was not compared")


def _own_bands(locked: RunTrace, expected: Expected) -> dict[str, tuple[Band, bool]]:
    """The band of each metric for one seed, and whether its value is this seed's own (else the mean of several)."""
    if len(expected.runs) == 1:
        return {name: (band, True) for name, band in expected.tuned.items()}
    own = locked.tuned or {}
    return {
        name: (around(own[name], band), True) if name in own else (band, False) for name, band in expected.tuned.items()
    }


def _band(name: str, band: Band, value: float | None, *, exact: bool) -> ComparedPart:
    """`exact`: the machine owes the very number."""
    locked, low, high = band
    passed = value is not None and (value == locked if exact else low <= value <= high)
    shown = "not measured" if value is None else f"{value:.6g}"
    if not exact:
        return ComparedPart(name, passed, f"{shown}; locked {locked:.6g}, allowed {low:.6g} to {high:.6g}")
    detail = (
        f"{shown}, bit for bit" if passed else f"{shown}; locked {locked!r}, here {value!r}: bit for bit is required"
    )
    return ComparedPart(name, passed, detail)


def _mean_loss(pairs: Mapping[int, tuple[Step | None, Step | None]]) -> ComparedPart:
    """What stands for a metric where only the first steps were taken."""
    both = [(one.loss, other.loss) for one, other in pairs.values() if one is not None and other is not None]
    if not both:
        return ComparedPart("mean loss of these steps", False, "no step was taken by both runs")
    one, other = (statistics.fmean(side) for side in zip(*both, strict=True))
    passed = _relative(one, other) <= DEFAULT_SHARE
    return ComparedPart(
        "mean loss of these steps", passed, f"{other:.6g}; locked {one:.6g}, allowed ± {DEFAULT_SHARE:.1%}"
    )
