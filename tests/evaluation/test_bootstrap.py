from __future__ import annotations

import numpy as np
import pytest

from peftcli.evaluation import bootstrap
from peftcli.evaluation.bootstrap import interval, resample
from peftcli.evaluation.metric import ratio


def means(count: int = 400, seed: int = 3) -> np.ndarray:
    values = np.random.default_rng(seed).normal(2.0, 1.0, count)
    return np.stack([values, np.ones(count)], axis=-1)


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    rows = means()
    low, high = interval(resample(rows, ratio))
    mean, error = rows[:, 0].mean(), rows[:, 0].std() / 20
    assert low == pytest.approx(mean - 1.96 * error, abs=0.02)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.02)


def test_resampling_is_repeatable_and_leaves_the_shared_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = means(101)
    before = np.random.get_state()[1].copy()
    first = resample(rows, ratio)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", 7 * 101 * 2)  # seven resamples at a time
    np.testing.assert_allclose(resample(rows, ratio), first, rtol=1e-12)
    assert not np.array_equal(resample(rows, ratio, seed=1), first)


def test_a_long_row_weighs_more_than_a_short_one() -> None:
    rows = np.array([[1.0, 1.0]] * 50 + [[300.0, 100.0]] * 50)
    assert resample(rows, ratio).mean() == pytest.approx(rows[:, 0].sum() / rows[:, 1].sum(), rel=0.01)


def test_one_row_has_an_interval_of_no_width() -> None:
    assert interval(resample(np.array([[3.0, 2.0]]), ratio)) == (1.5, 1.5)


def test_resamples_without_targets_are_left_out() -> None:
    low, high = interval(resample(np.array([[3.0, 2.0], [0.0, 0.0]]), ratio))
    assert (low, high) == (1.5, 1.5)
    assert np.isnan(interval(np.full(3, np.nan))).all()
