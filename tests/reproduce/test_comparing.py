"""The comparison itself, on traces made by hand: levels, tolerances, and what parts two runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from peftcli.lock.differences import Difference
from peftcli.lock.document import Expected
from peftcli.lock.trace import Step, trace_of
from peftcli.reproduce.comparing import TOLERANCE_FP32_CPU, Terms, compare, parting
from peftcli.reproduce.result import Level, SeedResult

STEPS = 20
BYTES = Terms("bytes", TOLERANCE_FP32_CPU, 1e-4)
TRACE = dataclasses.replace(BYTES, wanted="trace")
METRICS = dataclasses.replace(BYTES, wanted="metrics")
GOOD = {"eval_loss": 0.5}


def steps(change: Callable[[int, Step], Step] = lambda number, step: step) -> dict[int, Step]:
    plain = {number: Step(3.0 / number, 1.0 + number / 7, f"b{number}", f"d{number}") for number in range(1, STEPS + 1)}
    return {number: change(number, step) for number, step in plain.items()}


def scaled(factor: Callable[[int], float]) -> dict[int, Step]:
    return steps(lambda number, step: dataclasses.replace(step, loss=step.loss * factor(number)))


def from_step(first: int, **facts: object) -> dict[int, Step]:
    return steps(lambda number, step: dataclasses.replace(step, **facts) if number >= first else step)  # type: ignore[arg-type]


def result(found: dict[int, Step], terms: Terms, *, adapter: str = "same", loss: float = 0.5) -> SeedResult:
    locked = trace_of(steps(), seed=42, steps=STEPS, adapter_sha256="same")
    expected = Expected(runs=[locked], tuned={"eval_loss": (0.5, 0.49, 0.51)})
    other = trace_of(found, seed=42, steps=STEPS, adapter_sha256=adapter)
    return compare(locked, expected, other, {"eval_loss": loss}, terms)


@pytest.mark.parametrize("terms", [BYTES, TRACE, METRICS])
def test_equal_runs_are_equal_everywhere(terms: Terms) -> None:
    found = result(steps(), terms)
    assert found.level == "bytes"
    assert found.parting is None
    assert all(finding.passed for finding in found.findings)


def test_one_bit_is_too_much_where_bytes_are_owed() -> None:
    found = result(scaled(lambda number: 1 + 1e-12 * (number >= 7)), BYTES, adapter="other")
    assert found.level is None
    assert found.parting is not None
    assert (found.parting.step, found.parting.what) == (7, "numbers")


def test_an_adapter_of_other_bytes_is_told_even_where_no_step_differs() -> None:
    found = result(steps(), BYTES, adapter="other")
    assert found.level is None
    assert found.parting is None
    assert [finding.name for finding in found.findings if finding.passed is False] == ["adapter"]


LEVELS: list[tuple[str, Callable[[int], float], Terms, float, Level | None]] = [
    ("rounding", lambda number: 1 + 5e-5, TRACE, 0.5, "trace"),
    ("grown late", lambda number: 1 + 1e-6 * 2.0**number, TRACE, 0.5, "metrics"),
    ("grown late, result elsewhere", lambda number: 1 + 1e-6 * 2.0**number, TRACE, 0.6, None),
    ("apart at once", lambda number: 1 + 2e-4, TRACE, 0.5, None),
    ("apart at once, other versions", lambda number: 1 + 2e-4, METRICS, 0.5, "metrics"),
    ("other versions, result elsewhere", lambda number: 1.0, METRICS, 0.6, None),
]


@pytest.mark.parametrize(("name", "factor", "terms", "loss", "level"), LEVELS, ids=[case[0] for case in LEVELS])
def test_levels_of_other_machines(
    name: str, factor: Callable[[int], float], terms: Terms, loss: float, level: Level | None
) -> None:
    assert result(scaled(factor), terms, adapter="other", loss=loss).level == level


def test_another_order_of_rows_is_no_rounding_on_any_machine() -> None:
    found = result(from_step(9, batch="other"), TRACE, adapter="other")
    assert found.level is None
    assert found.parting is not None
    assert (found.parting.step, found.parting.what) == (9, "data order")


def test_what_parts_is_told_apart() -> None:
    locked = steps()

    def part(found: dict[int, Step], terms: Terms = BYTES) -> tuple[int, str]:
        parted = parting({number: (locked[number], found[number]) for number in locked}, terms, tolerance=0.0)
        assert parted is not None
        return parted.step, parted.what

    assert part(from_step(4, batch="x", loss=9.0)) == (4, "data order")
    assert part(from_step(4, draws="x", loss=9.0)) == (4, "randomness")
    assert part(from_step(4, loss=9.0)) == (4, "randomness"), "equal weights, equal data, far apart"
    assert part(scaled(lambda number: 1 + 1e-7 * (number >= 4))) == (4, "numbers")
    changed = dataclasses.replace(BYTES, inputs=(Difference("recipe", "training.learning_rate", "1", "2"),))
    assert part(from_step(2, loss=9.0), changed) == (2, "numbers")


def test_a_step_that_only_one_run_skipped_parts_them() -> None:
    found = {number: step for number, step in steps().items() if number != 5}
    parted = result(found, BYTES, adapter="other").parting
    assert parted is not None
    assert (parted.step, parted.what) == (5, "numbers")


def test_a_shorter_run_is_not_the_locked_one_even_where_its_steps_are() -> None:
    locked = trace_of(steps(), seed=42, steps=STEPS)
    half = trace_of({step: taken for step, taken in steps().items() if step <= 10}, seed=42, steps=10)
    found = compare(locked, Expected(runs=[locked]), half, {}, METRICS)
    assert not found.held
    assert any(finding.name == "steps" and finding.passed is False for finding in found.findings)


def test_without_metrics_the_losses_speak() -> None:
    locked = trace_of(steps(), seed=42, steps=STEPS)
    other = trace_of(scaled(lambda number: 1.1), seed=42, steps=STEPS)
    assert not compare(locked, Expected(runs=[locked]), other, {}, METRICS).held
    assert compare(locked, Expected(runs=[locked]), locked, {}, METRICS).level == "bytes"


@pytest.mark.parametrize("metrics", [None, {}])
def test_nothing_compared_is_nothing_reproduced(metrics: dict[str, float | None] | None) -> None:
    nothing = trace_of({}, seed=42, steps=STEPS)
    found = compare(nothing, Expected(runs=[nothing]), nothing, metrics, METRICS)
    assert not found.held
    assert any("no step was taken by both" in finding.detail for finding in found.findings)


def test_equal_bytes_of_other_inputs_are_not_bit_for_bit() -> None:
    changed = Difference("data", "validation.jsonl", "a" * 64, "b" * 64)
    assert result(steps(), dataclasses.replace(BYTES, inputs=(changed,))).level == "trace"


def test_equal_weights_that_are_scored_otherwise_are_no_equal_run() -> None:
    """Within the band, and still not what the same machine owes; on another machine the band is what counts."""
    found = result(steps(), BYTES, loss=0.5 + 1e-12)
    assert not found.held
    assert [finding.name for finding in found.findings if finding.passed is False] == ["eval_loss"]
    assert result(steps(), METRICS, loss=0.5 + 1e-12).level == "metrics"
    assert result(steps(), TRACE, loss=0.5 + 1e-12).level == "trace"


def test_every_seed_is_compared_with_itself() -> None:
    """Losses of 3 and 5 around a mean of 4: neither may become the other, nor the mean."""
    runs = [trace_of(steps(), seed=seed, steps=STEPS).model_copy(update={"tuned": {"eval_loss": loss}})
            for seed, loss in ((42, 3.0), (43, 5.0))]  # fmt: skip
    expected = Expected(runs=runs, tuned={"eval_loss": (4.0, 3.98, 4.02)})

    def level(seed: int, loss: float) -> Level | None:
        return compare(runs[seed - 42], expected, runs[seed - 42], {"eval_loss": loss}, METRICS).level

    assert level(42, 3.0) == level(43, 5.0) == "bytes"
    assert level(42, 3.01) == level(43, 5.02) == "metrics"
    assert [level(42, loss) for loss in (5.0, 4.0, 3.1)] == [None] * 3
    assert [level(43, loss) for loss in (3.0, 4.0, 4.9)] == [None] * 3
