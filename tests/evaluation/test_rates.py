"""Intervals and tests of rates against computations that share no code with them: roots that are searched, sums of binomial
probabilities as fractions, enumerations, and how often an interval holds what is true."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest

from peftcli.evaluation.metric import Metric, ratio
from peftcli.evaluation.metrics import exact_match, loss
from peftcli.evaluation.rates import Z, is_binary, mcnemar, paired_interval, wilson
from peftcli.evaluation.result import Evaluation, Table, compare

QUANTILE = NormalDist().inv_cdf(0.975)


def evaluation(numbers: np.ndarray, metric: Metric = exact_match.METRIC) -> Evaluation:
    table = Table(metric, numbers, np.zeros(len(numbers), dtype=np.int64))
    return Evaluation(
        {"eval_x": table.value()}, {}, len(numbers), 0, [], {}, {}, 0.0, tables={"eval_x": table}
    )  # fmt: skip


def right(rows: list[int] | np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(rows, dtype=float), np.ones(len(rows))], axis=-1)


def test_the_quantile() -> None:
    assert pytest.approx(QUANTILE, abs=1e-14) == Z


# -- one rate --------------------------------------------------------------------------------------------------------


def score_root(right: int, rows: int, *, upper: bool) -> float:
    """The end of the score interval as what it is: where the share lies Z standard errors of that very end away."""
    share = right / rows

    def away(p: float) -> float:
        return abs(share - p) - QUANTILE * math.sqrt(p * (1.0 - p) / rows)

    inside, outside = share, 1.0 if upper else 0.0
    if away(outside) <= 0:
        return outside
    for _ in range(200):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if away(middle) <= 0 else (inside, middle)
    return inside


@pytest.mark.parametrize("rows", [1, 2, 7, 40, 200, 5000])
def test_wilson_is_where_the_score_test_turns(rows: int) -> None:
    for count in sorted({0, 1, rows // 3, rows // 2, rows - 1, rows}):
        low, high = wilson(count / rows, rows)
        assert low == pytest.approx(score_root(count, rows, upper=False), abs=1e-9)
        assert high == pytest.approx(score_root(count, rows, upper=True), abs=1e-9)
        assert 0.0 <= low <= count / rows <= high <= 1.0


def test_none_of_forty_is_not_certainly_none() -> None:
    assert wilson(0.0, 40) == pytest.approx((0.0, 0.0876), abs=5e-5)
    assert wilson(1.0, 40) == pytest.approx((0.9124, 1.0), abs=5e-5)
    assert all(math.isnan(end) for end in (*wilson(0.5, 0), *wilson(math.nan, 9)))


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_wilson_holds_the_truth_as_often_as_it_says(share: float) -> None:
    """The exact coverage: probabilities of all counts whose interval holds the share; 95 % on the average of sizes."""
    found = []
    for rows in range(30, 80):
        held = [
            count
            for count in range(rows + 1)
            if wilson(count / rows, rows)[0] <= share <= wilson(count / rows, rows)[1]
        ]
        found.append(sum(math.comb(rows, count) * share**count * (1 - share) ** (rows - count) for count in held))
    assert np.mean(found) == pytest.approx(0.95, abs=0.02)
    assert min(found) > 0.83


# -- two rates on the same rows --------------------------------------------------------------------------------------


def enumerated(won: int, lost: int) -> float:
    """Share of all ways to toss a coin for each row that differs that are as uneven as what was seen, or more."""
    wins = [sum(tosses) for tosses in itertools.product((0, 1), repeat=won + lost)]
    uneven = abs(won - lost)
    return sum(abs(2 * count - won - lost) >= uneven for count in wins) / len(wins)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (3, 3), (5, 0), (0, 6), (7, 2), (8, 4), (1, 11)])
def test_mcnemar_is_a_coin_for_each_row_that_differs(won: int, lost: int) -> None:
    assert mcnemar(won, lost) == pytest.approx(enumerated(won, lost), abs=1e-15)


@pytest.mark.parametrize(("won", "lost"), [(40, 25), (130, 90), (700, 610), (5000, 0)])
def test_mcnemar_of_many_rows_is_exact(won: int, lost: int) -> None:
    least = sum(Fraction(math.comb(won + lost, count), 2 ** (won + lost)) for count in range(min(won, lost) + 1))
    assert mcnemar(won, lost) == pytest.approx(float(min(Fraction(1), 2 * least)), rel=1e-14)


def test_mcnemar_accuses_an_innocent_no_more_than_once_in_twenty() -> None:
    """Exactly, over every outcome of rows that differ by chance alone."""
    for differ in (5, 6, 12, 25, 60):
        wrong = sum(
            math.comb(differ, won) / 2**differ for won in range(differ + 1) if mcnemar(won, differ - won) < 0.05
        )
        assert wrong <= 0.05, differ


def constrained_spread(won: int, lost: int, rows: int, delta: float) -> float:
    """Variance of the difference of a row where shares differ by `delta`, at the likeliest share of lost rows, searched."""
    low, high = max(0.0, -delta), (1.0 - delta) / 2.0

    def likelihood(share: float) -> float:
        parts = ((won, share + delta), (lost, share), (rows - won - lost, 1.0 - 2.0 * share - delta))
        return sum(count * math.log(max(p, 1e-300)) for count, p in parts if count)

    golden = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(120):
        one, other = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, other) if likelihood(one) >= likelihood(other) else (one, high)
    return 2.0 * low + delta - delta * delta


@pytest.mark.parametrize(
    ("won", "lost", "rows"), [(0, 0, 120), (5, 2, 40), (30, 0, 30), (0, 9, 30), (70, 60, 400), (1, 0, 1)]
)
def test_the_paired_interval_ends_where_the_score_test_turns(won: int, lost: int, rows: int) -> None:
    low, high = paired_interval(won, lost, rows)
    assert low <= (won - lost) / rows <= high
    for end in (low, high):
        if abs(end) < 1.0 - 1e-9:
            spread = constrained_spread(won, lost, rows, end)
            assert abs(won - lost - rows * end) == pytest.approx(QUANTILE * math.sqrt(rows * spread), rel=1e-4)


def test_rows_that_never_differ_are_no_certainty() -> None:
    low, high = paired_interval(0, 0, 120)
    assert (low, high) == pytest.approx((-wilson(0.0, 120)[1], wilson(0.0, 120)[1]), abs=1e-9)


@pytest.mark.parametrize(("wins", "losses"), [(0.3, 0.1), (0.05, 0.05), (0.9, 0.0), (0.0, 0.02)])
def test_the_paired_interval_holds_the_truth(wins: float, losses: float) -> None:
    drawn = np.random.default_rng(5).multinomial(120, [wins, losses, 1 - wins - losses], size=4000)
    ends = np.array([paired_interval(int(won), int(lost), 120) for won, lost, _ in drawn])
    held = ((ends[:, 0] <= wins - losses) & (wins - losses <= ends[:, 1])).mean()
    assert held >= 0.93
    assert (ends >= -1).all()
    assert (ends <= 1).all()


def test_a_change_is_judged_by_the_rows_on_which_models_differ() -> None:
    """Intervals that overlap are no verdict: 10 rows won, none lost, is clear, though both rates are uncertain."""
    base, tuned = np.zeros(60), np.zeros(60)
    base[:30], tuned[:40] = 1, 1
    assert wilson(0.5, 60)[1] > wilson(40 / 60, 60)[0]
    found = compare(evaluation(right(base)), evaluation(right(tuned)))["eval_x"]
    assert (found.test, found.verdict) == ("McNemar's exact test", "better")
    assert found.p == pytest.approx(2 / 2**10)
    assert found.delta == pytest.approx(1 / 6)
    assert found.lo < found.delta < found.hi
    # the same rates, but other rows: 40 won and 30 lost
    others = np.r_[np.zeros(20), np.ones(40)]
    assert compare(evaluation(right(base)), evaluation(right(others)))["eval_x"].verdict == "unclear"
    assert compare(evaluation(right(tuned)), evaluation(right(base)))["eval_x"].verdict == "worse"
    same = compare(evaluation(right(base)), evaluation(right(base)))["eval_x"]
    assert (same.verdict, same.p, same.delta) == ("unclear", 1.0, 0.0)


def test_rows_that_are_neither_right_nor_wrong_are_no_rate() -> None:
    assert is_binary(right([0, 1, 1]))
    for numbers in (np.array([[0.5, 1.0]]), np.array([[1.0, 2.0]]), np.empty((0, 2)), np.ones((3, 3)), np.ones(3)):
        assert not is_binary(numbers)


# -- a mean on the same rows -------------------------------------------------------------------------------------------


def test_the_paired_bootstrap_is_of_the_differences() -> None:
    """Rows that are hard for both: the spread of the differences counts, not that of the losses. Against the normal
    interval of a weighted mean of differences."""
    drawn = np.random.default_rng(8)
    hard, tokens = drawn.normal(5.0, 2.0, 300), np.full(300, 10.0)
    base = np.stack([hard * tokens, tokens], axis=-1)
    tuned = np.stack([(hard - 0.05 + drawn.normal(0, 0.2, 300)) * tokens, tokens], axis=-1)
    found = compare(evaluation(base, loss.METRIC), evaluation(tuned, loss.METRIC))["eval_x"]
    differences = (tuned[:, 0] - base[:, 0]) / tokens
    half = QUANTILE * differences.std() / math.sqrt(300)
    assert found.test == "paired bootstrap over rows"
    assert (found.lo, found.hi) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.004)
    assert found.verdict == "better"
    alone = QUANTILE * hard.std() / math.sqrt(300)
    assert alone > 5 * half, "unpaired it would be unclear"


def test_the_value_of_a_table_is_a_ratio_of_sums() -> None:
    numbers = np.array([[2.0, 4.0], [9.0, 2.0]])
    assert float(ratio(numbers.sum(axis=0))) == pytest.approx(11 / 6)
    assert evaluation(numbers, loss.METRIC).metrics["eval_x"] == pytest.approx(11 / 6)
