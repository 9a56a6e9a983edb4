"""Rows in packs: every row once, none too long, deterministic, and less padding than before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftcli.data.packing import best_fit, forward_passes, num_cells, padding_share, unpacked_passes

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=40)


def test_each_row_goes_where_the_least_room_is_left() -> None:
    # 60 and 50 open packs of 100; 45 fits into the second only, 35 then into the first, 5 into the least room, the first
    assert best_fit([35, 5, 60, 45, 50], 100) == [[2, 0, 1], [4, 3]]


def test_equal_rows_keep_their_order() -> None:
    assert best_fit([5, 5, 5, 5], 10) == [[0, 1], [2, 3]]


def test_fewer_packs_than_first_come_first_served() -> None:
    assert len(best_fit([50, 60, 50, 40], 100)) == 2


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, packs=st.integers(1, 8), spare=st.integers(0, 30))
def test_every_row_is_in_one_pack_that_is_not_too_long(lengths: list[int], packs: int, spare: int) -> None:
    capacity = max(lengths) + spare
    passes = forward_passes(lengths, capacity, packs)
    places = [place for group in passes for pack in group for place in pack]
    assert sorted(places) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in pack) <= capacity for group in passes for pack in group)
    assert all(1 <= len(group) <= packs for group in passes)
    assert forward_passes(lengths, capacity, packs) == passes
    assert len(passes) <= len(unpacked_passes(len(lengths), packs))


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS)
def test_packing_never_pads_more_where_one_pass_is_enough(lengths: list[int]) -> None:
    count = len(lengths)
    packed = forward_passes(lengths, max(lengths), count)
    assert num_cells(lengths, packed) <= num_cells(lengths, unpacked_passes(count, count))


def test_the_padding_of_shuffled_instruction_rows_is_all_but_gone() -> None:
    """A count that no load moves: rows as long as instructions are (log-normal, median 90, at most 512)."""
    drawn = np.random.Generator(np.random.Philox(0)).lognormal(np.log(90), 0.7, size=(20, 32))
    batches = np.clip(drawn, 8, 512).astype(int).tolist()
    unpacked, packed = padding_share(batches, 16, None), padding_share(batches, 16, 512)
    assert unpacked == pytest.approx(0.46, abs=0.08)
    assert packed < 0.05


def test_a_row_that_is_too_long_is_a_fault_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="a row of 11 tokens"):
        best_fit([11], 10)
