"""What is held out of the training rows when the recipe says nothing, and rows that are on both sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftcli.data.config import DataConfig, held_out
from peftcli.data.prepare import PreparedData, prepare
from peftcli.errors import DataError


def write(path: Path, numbers: range) -> None:
    rows = [{"prompt": f"what is {number}?", "completion": f" it is {number}"} for number in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path: Path, make_tokenizer: Any) -> Any:
    def prepared(**keys: Any) -> PreparedData:
        config = DataConfig.model_validate({"train": "rows.jsonl", **keys})
        return prepare(config, tokenizer=make_tokenizer(), folder=tmp_path, seed=0)

    return prepared


@pytest.mark.parametrize(
    ("rows", "wanted"), [(1, 0), (4, 0), (5, 1), (50, 10), (100, 20), (400, 20), (1000, 50), (100_000, 1000)]
)
def test_a_twentieth_is_held_out_within_bounds(rows: int, wanted: int) -> None:
    assert held_out(rows) == wanted


def test_rows_are_held_out_where_the_recipe_says_nothing(run: Any, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", range(200))
    data = run()
    assert (len(data.train), len(data.validation)) == (180, 20)
    train, held = ({store[row].origin.line for row in range(len(store))} for store in (data.train, data.validation))
    assert not train & held
    assert len(train | held) == 200


@pytest.mark.parametrize("nothing", [0, None])
def test_all_rows_are_trained_on_where_that_is_asked(run: Any, tmp_path: Path, nothing: Any) -> None:
    write(tmp_path / "rows.jsonl", range(200))
    data = run(validation=nothing)
    assert len(data.train) == 200
    assert data.validation is None


def test_too_few_rows_are_all_trained_on(run: Any, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", range(4))
    assert run().validation is None


@pytest.mark.parametrize(("shared", "stops"), [(0, False), (9, False), (10, True), (20, True)])
def test_validation_on_trained_rows_stops_at_half(run: Any, tmp_path: Path, shared: int, stops: bool) -> None:
    write(tmp_path / "rows.jsonl", range(100))
    write(tmp_path / "held.jsonl", range(100 - shared, 120 - shared))
    if stops:
        with pytest.raises(DataError, match="leakage"):
            run(validation="held.jsonl")
    else:
        assert run(validation="held.jsonl").facts.validation_trained_on == shared
    asked = run(validation="held.jsonl", checks={"leakage": "warn"})
    assert asked.facts.validation_trained_on == shared
    assert run(validation="held.jsonl", checks={"leakage": "off"}).facts.validation_trained_on == shared
