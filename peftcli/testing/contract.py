"""One table of properties that every method must have on every family that it works with.

    outcomes = run_contract(Case({"type": "lora", "r": 4}, "llama"))
    assert all(outcome.passed for outcome in outcomes)

A check that does not apply returns the reason; one that fails raises `AssertionError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from peftcli.testing.case import Case, Outcome
from peftcli.testing.placing_checks import (
    base_is_untouched,
    base_parameters_keep_their_names,
    counts_agree,
    merges_or_says_why,
    starts_as_stated,
)
from peftcli.testing.running_checks import (
    cached_generation_is_the_same,
    checkpointed_gradients_are_the_same,
    every_tensor_gets_a_gradient,
    padding_changes_nothing,
)
from peftcli.testing.storing_checks import (
    damaged_files_are_refused,
    half_precision_works,
    resuming_is_exact,
    save_and_load_are_exact,
)

CHECKS: Mapping[str, Callable[[Case], str | None]] = {
    check.__name__: check
    for check in (
        starts_as_stated,
        base_is_untouched,
        every_tensor_gets_a_gradient,
        counts_agree,
        save_and_load_are_exact,
        damaged_files_are_refused,
        merges_or_says_why,
        padding_changes_nothing,
        cached_generation_is_the_same,
        checkpointed_gradients_are_the_same,
        resuming_is_exact,
        half_precision_works,
        base_parameters_keep_their_names,
    )
}
"""Name -> check; each returns what does not hold, or None."""


def run_contract(case: Case, checks: Sequence[str] | None = None) -> list[Outcome]:
    """Runs the checks (all by default) on one case and returns what each found; nothing is raised for a failure."""
    return [_outcome(name, CHECKS[name], case) for name in (checks or CHECKS)]


def _outcome(name: str, check: Callable[[Case], str | None], case: Case) -> Outcome:
    try:
        return Outcome(name, case, skipped=check(case))
    # what code under test raises is the check's result; a full disk or Ctrl-C ends the suite
    except (AssertionError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        return Outcome(name, case, error=f"{type(error).__name__}: {error}"[:400])
