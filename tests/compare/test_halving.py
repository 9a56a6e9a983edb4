"""Which rates are tried, for how long, and who goes on."""

from __future__ import annotations

import pytest

from peftcli.compare.halving import best_of, rate_grid, rungs


@pytest.mark.parametrize(("candidates", "steps"), [(9, 60), (9, 200), (5, 90), (2, 30), (27, 1000), (9, 20)])
def test_tuning_and_the_member_cost_a_third_of_training_every_candidate(candidates: int, steps: int) -> None:
    found = rungs(candidates, steps)
    assert found[0].candidates == candidates
    assert [rung.steps for rung in found] == sorted({rung.steps for rung in found}), "each rung is longer"
    cost = sum(rung.candidates * rung.steps for rung in found)
    if candidates >= 9 and steps >= 60:
        assert cost + steps <= candidates * steps / 3 * 1.05
    assert cost <= candidates * steps


def test_rungs_of_nine() -> None:
    assert [(rung.candidates, rung.steps) for rung in rungs(9, 90)] == [(9, 10), (3, 30)]
    assert [(rung.candidates, rung.steps) for rung in rungs(3, 90)] == [(3, 30)]
    # a trial of a step or two would say nothing
    assert [(rung.candidates, rung.steps) for rung in rungs(9, 9)] == [(9, 4)]
    assert [(rung.candidates, rung.steps) for rung in rungs(4, 3)] == [(4, 3)]


def test_rates_lie_around_the_centre_in_powers_of_two() -> None:
    assert rate_grid(0.01, 5) == pytest.approx([0.0025, 0.005, 0.01, 0.02, 0.04])
    assert rate_grid(0.01, 2) == pytest.approx([0.01, 0.02])
    many = rate_grid(0.01, 17)
    assert len(set(many)) == 17
    assert many[8] == 0.01
    assert many[-1] / many[0] == pytest.approx(256, rel=0.01)


def test_the_lowest_go_on_and_failures_never() -> None:
    assert best_of({0: 3.0, 1: None, 2: 1.0, 3: 2.0}, 2) == [2, 3]
    assert best_of({0: None, 1: None}, 1) == []
