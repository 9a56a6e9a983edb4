"""Sketches of rows: of the row alone, whatever lies before and after it, and as alike as rows are."""

from __future__ import annotations

import numpy as np
import pytest

from peftcli.data.sketch import PARTS, SHINGLE, sketch


def sketched(*rows: list[int]) -> np.ndarray:
    tokens = np.array([token for row in rows for token in row], dtype=np.int32)
    return sketch(tokens, np.array([len(row) for row in rows], dtype=np.int64))


@pytest.mark.parametrize("length", range(1, SHINGLE + 3))
def test_a_row_has_one_sketch_wherever_it_stands(length: int) -> None:
    """Also a row of fewer tokens than a run has, before another, at the end, alone, beside empty ones."""
    row = list(range(40, 40 + length))
    (alone,) = sketched(row)
    assert alone.any()
    for before, after in (([], [7, 8, 9]), ([1], [2]), ([1, 2, 3, 4, 5, 6], []), ([1, 2], [9] * 12)):
        assert np.array_equal(sketched(before, row, after)[1], alone), (before, after)


def test_short_rows_are_told_apart() -> None:
    rows = [[5], [6], [5, 0], [0, 5], [0], [0, 0], [5, 6], [6, 5], [5, 6, 0], [5, 6, 7, 8], [5, 6, 7]]
    found = {tuple(each.tolist()) for each in sketched(*rows)}
    assert len(found) == len(rows)


def test_rows_without_tokens_are_zeros() -> None:
    found = sketched([], [1, 2], [])
    assert found.shape == (3, PARTS)
    assert not found[0].any()
    assert not found[2].any()


def test_agreement_is_about_the_share_of_runs_in_common() -> None:
    """Against runs compared as sets: two rows with 4 of 5 runs in common agree in about as many of the numbers."""
    drawn = np.random.default_rng(3)
    expected, seen = [], []
    for _ in range(400):
        row = drawn.integers(0, 5000, 60).tolist()
        other = [*row[:52], *drawn.integers(0, 5000, 8).tolist()]
        runs, others = (
            {tuple(each[at : at + SHINGLE]) for at in range(len(each) - SHINGLE + 1)} for each in (row, other)
        )
        expected.append(len(runs & others) / len(runs | others))
        one, two = sketched(row, other)
        seen.append(float((one == two).mean()))
    assert np.mean(seen) == pytest.approx(np.mean(expected), abs=0.03)
