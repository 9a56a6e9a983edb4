"""Streaming: bounded shuffling, weights, and a cursor from which the same batches come again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.data import stream as stream_module
from peftcli.data.config import DataConfig
from peftcli.data.prepare import prepare
from peftcli.data.stream import Cursor, RowStream
from peftcli.data.stream_order import StreamOrder
from peftcli.data.tokens import TokenizerFacts
from peftcli.errors import DataError, RecipeError

BATCH = 4


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "BLOCK_ROWS", 24)


@pytest.fixture
def open_stream(tmp_path: Path, plain_tokenizer: Any) -> Callable[..., RowStream]:
    def make(train: Any = "*.jsonl", seed: int = 0, **keys: Any) -> RowStream:
        config = DataConfig.model_validate({"train": train, "validation": 0, "truncation": "drop", **keys})
        return RowStream(config, TokenizerFacts.of(plain_tokenizer), tmp_path, seed, BATCH)

    return make


@pytest.fixture
def pairs(write_rows: Callable[..., Path]) -> Callable[[int, str], None]:
    def write(count: int, name: str) -> None:
        rows = [{"prompt": f"{name} {number}", "completion": " the cat" * (1 + number % 5)} for number in range(count)]
        write_rows(rows, name)

    return write


def _hashes(order: StreamOrder, steps: range) -> list[str]:
    found = []
    for step in steps:
        rows = order.rows(order.batch(0, step).tolist())
        body = [(row.input_ids.tolist(), row.weights.tolist(), row.origin.file, row.origin.line) for row in rows]
        found.append(hashlib.sha256(json.dumps(body).encode()).hexdigest())
    return found


def test_every_row_comes_once_a_pass_and_batches_are_full(open_stream: Any, pairs: Any) -> None:
    pairs(50, "a.jsonl")
    pairs(46, "b.jsonl")
    order = StreamOrder(open_stream(), batch_size=BATCH, steps=24)
    seen = [
        (row.origin.file, row.origin.line) for step in range(24) for row in order.rows(order.batch(0, step).tolist())
    ]
    assert len(seen) == 96 == len(set(seen))
    assert seen != sorted(seen)


@pytest.mark.parametrize("with_file", [True, False])
@pytest.mark.parametrize("stop", [1, 7, 23, 40])
def test_a_resumed_stream_gives_the_same_batches(
    open_stream: Any, pairs: Any, tmp_path: Path, stop: int, with_file: bool
) -> None:
    pairs(50, "a.jsonl")
    pairs(33, "b.jsonl")
    cursors = tmp_path / "cursors.json" if with_file else None
    whole = _hashes(StreamOrder(open_stream(), batch_size=BATCH, steps=60, cursors=cursors), range(60))
    again = StreamOrder(open_stream(), batch_size=BATCH, steps=60, cursors=cursors)
    assert _hashes(again, range(stop, 60)) == whole[stop:]
    # and stepping back
    assert _hashes(again, range(5)) == whole[:5]


def test_resuming_reads_no_more_than_two_blocks(open_stream: Any, pairs: Any, tmp_path: Path) -> None:
    pairs(500, "a.jsonl")
    cursors = tmp_path / "cursors.json"
    _hashes(StreamOrder(open_stream(), batch_size=BATCH, steps=110, cursors=cursors), range(110))
    again = open_stream()
    StreamOrder(again, batch_size=BATCH, steps=110, cursors=cursors).batch(0, 109)
    assert again.sources[0].reader.rows_read <= 48


def test_a_torn_cursor_file_costs_time_but_not_exactness(open_stream: Any, pairs: Any, tmp_path: Path) -> None:
    pairs(50, "a.jsonl")
    cursors = tmp_path / "cursors.json"
    whole = _hashes(StreamOrder(open_stream(), batch_size=BATCH, steps=30, cursors=cursors), range(30))
    cursors.write_bytes(cursors.read_bytes()[:-30] + b"\xff{")
    assert _hashes(StreamOrder(open_stream(), batch_size=BATCH, steps=30, cursors=cursors), range(20, 30)) == whole[20:]


def test_a_cursor_survives_json(open_stream: Any, pairs: Any) -> None:
    pairs(50, "a.jsonl")
    stream = open_stream()
    cursor = stream.block(stream.start()).next
    assert Cursor.from_dict(json.loads(json.dumps(cursor.to_dict()))) == cursor


def test_weights_and_seeds(open_stream: Any, pairs: Any) -> None:
    pairs(50, "a.jsonl")
    pairs(50, "b.jsonl")
    sources = [{"path": "a.jsonl", "weight": 3}, {"path": "b.jsonl", "weight": 1}]
    order = StreamOrder(open_stream(sources), batch_size=BATCH, steps=100)
    rows = [row for step in range(100) for row in order.rows(order.batch(0, step).tolist())]
    assert sum(row.origin.source == 0 for row in rows) == pytest.approx(300, abs=3)
    other = StreamOrder(open_stream(sources, seed=1), batch_size=BATCH, steps=100)
    assert _hashes(order, range(5)) != _hashes(other, range(5))


def test_text_is_cut_into_rows(open_stream: Any, write_rows: Any, plain_tokenizer: Any) -> None:
    write_rows([{"text": f"the cat {number} sat on the mat"} for number in range(100)], "a.jsonl")
    order = StreamOrder(open_stream(max_length=16, truncation="auto"), batch_size=BATCH, steps=8)
    lengths = np.array([len(row.input_ids) for step in range(8) for row in order.rows(order.batch(0, step).tolist())])
    assert lengths.max() == 16
    assert (lengths == 16).sum() >= len(lengths) - 3


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"prompt": "a", "completion": " b"}] * 30 + [{"prompt": "a", "completion": None}], "a.jsonl:31"),
        ([{"prompt": "a" * 99, "completion": " b"}], "can be used"),
    ],
)
def test_bad_rows_stop_the_stream(open_stream: Any, write_rows: Any, rows: list[Any], says: str) -> None:
    write_rows(rows, "a.jsonl")
    order = StreamOrder(open_stream(max_length=20), batch_size=BATCH, steps=20)
    with pytest.raises(DataError, match=says):
        _hashes(order, range(20))


def test_prepared_data_opens_its_stream(tmp_path: Path, plain_tokenizer: Any, pairs: Any) -> None:
    pairs(100, "a.jsonl")
    pairs(10, "b.jsonl")
    config = DataConfig.model_validate({"train": "a.jsonl", "validation": "b.jsonl", "streaming": True})
    data = prepare(config, tokenizer=plain_tokenizer, folder=tmp_path, seed=0)
    assert data.facts.streaming
    assert (len(data.train), len(data.validation or ())) == (24, 10)
    with pytest.raises(RecipeError, match="max_steps"):
        data.order(BATCH, 0)
    order = data.order(BATCH, 0, max_steps=25)
    assert isinstance(order, StreamOrder)
    assert order.steps_per_epoch == 25
    lines = {row.origin.line for step in range(24) for row in order.rows(order.batch(0, step).tolist())}
    assert lines == set(range(1, 97))


def test_a_share_of_a_stream_cannot_be_split_off() -> None:
    with pytest.raises(ValueError, match="split off a stream"):
        DataConfig.model_validate({"train": "a.jsonl", "validation": 0.1, "streaming": True})
