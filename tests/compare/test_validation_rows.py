"""No row chooses a setting and scores it, whatever the seeds hold out."""

from __future__ import annotations

import numpy as np
import pytest

from peftcli.compare.validation_rows import part_rows
from peftcli.errors import DataError


def _files(lines: range | list[int]) -> list[str]:
    return [f"rows.jsonl:{line}" for line in lines]


def test_parts_share_no_row_and_leave_the_larger_one_for_the_score() -> None:
    rows = _files(range(90))
    parts = part_rows({("lora", 1): rows, ("ia3", 1): rows}, 1, 1)
    tuning, final = parts.tuning["lora"], parts.final["lora", 1]
    assert len(tuning) == 30
    assert sorted([*tuning, *final]) == list(range(90))
    assert np.array_equal(final, parts.final["ia3", 1]), "all are scored on the same rows"
    # drawn from everywhere: a file that is sorted by class or source has both on either side
    assert min(tuning) < 20
    assert max(tuning) > 70


def test_another_seed_that_holds_out_other_rows_is_not_scored_on_those_that_tuning_saw() -> None:
    first, second = _files(range(0, 60)), _files(range(30, 90))
    parts = part_rows({("lora", 1): first, ("lora", 2): second}, 1, 1)
    seen = {first[row] for row in parts.tuning["lora"]}
    assert seen & set(second), "the test asks nothing otherwise"
    scored = [{rows[row] for row in parts.final["lora", seed]} for seed, rows in ((1, first), (2, second))]
    assert not seen & (scored[0] | scored[1])
    assert len(scored[0]) == len(scored[1])


def test_pieces_of_one_document_stay_together() -> None:
    rows = [f"book.txt:{number // 4}" for number in range(80)]
    parts = part_rows({("lora", 1): rows}, 1, 1)
    assert not {rows[row] for row in parts.tuning["lora"]} & {rows[row] for row in parts.final["lora", 1]}
    # one long text is parted by its pieces, since there is nothing else
    parts = part_rows({("lora", 1): ["book.txt:1"] * 40}, 1, 1)
    assert len(parts.tuning["lora"]) == 16
    assert not set(parts.tuning["lora"]) & set(parts.final["lora", 1])


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few_rows_are_told(count: int) -> None:
    with pytest.raises(DataError, match="too few"):
        part_rows({("lora", 1): _files(range(count))}, 1, 1)
