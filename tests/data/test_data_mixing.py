"""Mixing, splitting, cutting and the order of batches: exact, seeded, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftcli.data.config import DataConfig
from peftcli.data.encode import source as encode_source_module
from peftcli.data.mixing import epoch_counts, epoch_rows, split_off
from peftcli.data.order import BatchOrder
from peftcli.data.prepare import prepare
from peftcli.data.store import RowIndex, TokenColumns, TokenStore, gather
from peftcli.data.truncation import cut_rows
from peftcli.errors import DataError


@pytest.fixture
def two_sources(tmp_path: Path, write_rows: Any, plain_tokenizer: Any) -> Any:
    for name, count in (("a", 700), ("b", 300)):
        write_rows([{"prompt": f"{name} {number}", "completion": " yes"} for number in range(count)], f"{name}.jsonl")

    def run(a: dict[str, Any], b: dict[str, Any], seed: int = 0, **keys: Any) -> Any:
        train = [{"path": "a.jsonl", **a}, {"path": "b.jsonl", **b}]
        config = DataConfig.model_validate({"train": train, "validation": 0, **keys})
        return prepare(config, tokenizer=plain_tokenizer, folder=tmp_path, seed=seed)

    return run


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.1, 0.9), (2, 5)])
def test_weights_are_met_within_a_thousandth(two_sources: Any, weights: tuple[float, float]) -> None:
    data = two_sources({"weight": float(weights[0])}, {"weight": float(weights[1])})
    assert len(data.train) == 1000
    for source, weight in zip(data.facts.train.sources, weights, strict=True):
        assert source.share == pytest.approx(weight / sum(weights), abs=0.001)
        assert source.asked == pytest.approx(weight / sum(weights))
    # evenly interleaved: any tenth of the epoch has the same mixture within a row or two
    first = data.train.index.source[:100]
    assert abs(int((first == 0).sum()) - 100 * weights[0] / sum(weights)) <= 2


def test_caps_and_repetition(two_sources: Any) -> None:
    data = two_sources({"rows": 20, "repeat": 3}, {"rows": 40})
    counts = [source.rows for source in data.facts.train.sources]
    assert counts == [60, 40]
    lines = data.train.index.line[data.train.index.source == 0]
    assert sorted(set(lines.tolist())) == list(range(1, 21))


def test_the_same_seed_gives_the_same_rows_and_another_does_not(two_sources: Any) -> None:
    weights = {"weight": 1.0}, {"weight": 1.0}
    one, same, other = (two_sources(*weights, seed=seed, validation=0.1).facts.train for seed in (0, 0, 1))
    assert (one.order_sha256, one.stream_sha256) == (same.order_sha256, same.stream_sha256)
    assert one.order_sha256 != other.order_sha256


def test_the_number_of_workers_changes_nothing(prepared: Any, chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [chat(f"question {number}", f"answer {number}") for number in range(3000)]
    alone = prepared(rows)
    monkeypatch.setattr(encode_source_module, "LARGE_BYTES", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    several = prepared(rows)
    assert alone.facts.train == several.facts.train
    assert alone.findings == several.findings


def test_workers_hand_on_refusals_and_template_errors(
    prepared: Any, chat: Any, monkeypatch: pytest.MonkeyPatch, make_tokenizer: Any, template_of: Any
) -> None:
    from peftcli.errors import ModelError

    monkeypatch.setattr(encode_source_module, "LARGE_BYTES", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    gemma = make_tokenizer(template=template_of("gemma"))
    with pytest.raises(DataError, match="take turns") as caught:
        prepared(
            [*([chat("a", "b")] * 3), {"messages": [*chat("a", "b")["messages"], *chat("c", "d")["messages"][1:]]}],
            tokenizer=gemma,
        )
    assert caught.value.where == "rows.jsonl:4"
    broken = make_tokenizer(template="{{ messages[0].content + 1 }}")
    with pytest.raises(ModelError, match="line 1"):
        prepared([chat("a", "b")], tokenizer=broken)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_splits_and_epochs_lose_and_double_nothing(counts: list[int], data: st.DataObject) -> None:
    total = sum(counts)
    if total > 1:
        wanted = data.draw(st.integers(1, total - 1))
        parts = split_off(counts, wanted, seed=3)
        assert sum(len(drawn) for _, drawn in parts) == wanted
        for count, (kept, drawn) in zip(counts, parts, strict=True):
            assert sorted([*kept.tolist(), *drawn.tolist()]) == list(range(count))
    weights = data.draw(st.lists(st.floats(0.01, 10), min_size=len(counts), max_size=len(counts)))
    shares = epoch_counts(counts, list(weights), [1] * len(counts))
    assert sum(shares) == total
    sources, rows = epoch_rows(counts, shares, seed=5)
    for number, (count, share) in enumerate(zip(counts, shares, strict=True)):
        of_source = rows[sources == number]
        assert len(of_source) == share
        occurrences = np.bincount(of_source, minlength=count)
        assert occurrences.max() - occurrences.min() <= 1


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=200),
    st.integers(1, 17),
    st.integers(0, 3),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_batches_hold_every_row_once_an_epoch(lengths: list[int], size: int, seed: int, epoch: int) -> None:
    order = BatchOrder(np.array(lengths), size, seed)
    batches = [order.batch(epoch, index) for index in range(order.steps_per_epoch)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) == size for batch in batches[:-1])
    other = BatchOrder(np.array(lengths), size, seed)
    last = order.steps_per_epoch - 1
    assert other.batch(epoch, last).tolist() == batches[last].tolist()


def test_batches_are_of_similar_lengths_and_differ_by_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 4096)
    order = BatchOrder(lengths, 16, 0)
    spread = [np.ptp(lengths[order.batch(0, index)]) for index in range(order.steps_per_epoch)]
    assert np.mean(spread) < 60
    assert order.batch(0, 0).tolist() != order.batch(1, 0).tolist()


def test_the_order_is_pinned_across_versions() -> None:
    order = BatchOrder(np.arange(1, 13) % 5, 4, 42)
    assert [order.batch(0, index).tolist() for index in range(3)] == PINNED_ORDER


PINNED_ORDER = [[5, 1, 6, 11], [4, 9, 0, 10], [2, 7, 8, 3]]


def _store(lengths: list[int]) -> tuple[list[TokenColumns], RowIndex]:
    total = sum(lengths)
    weights = np.ones(total, dtype=np.float32)
    size = np.array(lengths)
    start = np.cumsum(size) - size
    for begin, length in zip(start, size, strict=True):
        weights[begin : begin + length // 2] = 0
    columns = TokenColumns(np.arange(total, dtype=np.int32), weights)
    zero = np.zeros(len(lengths), dtype=np.int64)
    return [columns], RowIndex(zero, start, size, zero, zero, np.arange(1, len(lengths) + 1))


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=20),
    st.integers(3, 15),
    st.sampled_from(["left", "right", "drop", "split"]),
)
@settings(max_examples=80, deadline=None)
def test_cuts_count_what_they_take(lengths: list[int], max_length: int, policy: Any) -> None:
    columns, index = _store(lengths)
    before = TokenStore(columns, index, ["f"])
    # the first row begins with a token that begins texts, the others do not
    begin = int(index.start[0])
    cut = cut_rows(list(columns), index, policy, max_length, joins=False, begin=begin)
    after = TokenStore(cut.columns, cut.index, ["f"])
    assert after.lengths.max(initial=0) <= max_length
    assert (after.trained > 0).all()
    assert cut.tokens_lost == before.lengths.sum() - after.lengths.sum()
    if policy == "right":
        assert all(row.input_ids[0] in index.start for row in after)
    if policy == "left":
        ends = (index.start + index.length - 1).tolist()
        assert all(row.input_ids[-1] in ends for row in after)
        for row in after:
            whole = row.input_ids[0] in index.start
            # cut rows keep the token in front only where it begins texts
            assert row.input_ids[0] == begin or whole == (np.diff(row.input_ids) == 1).all() or not whole
    if policy == "split":
        assert len(set(np.concatenate([row.input_ids for row in after]).tolist())) == after.lengths.sum()


def test_gather_and_rows_agree() -> None:
    columns, index = _store([5, 3, 8, 2])
    other, _ = _store([4, 4])
    both = [*columns, TokenColumns(other[0].tokens + 100, other[0].weights)]
    rows = RowIndex.concatenate([index, RowIndex(np.array([1]), np.array([2]), np.array([5]), *(np.array([0]),) * 3)])
    rows = rows.take(np.array([4, 2, 0, 3]))
    flat = gather(both, rows)
    store = TokenStore(both, rows, ["f"])
    assert flat.tokens.tolist() == [token for row in store for token in row.input_ids.tolist()]


def test_too_many_long_rows_stop_the_run_unless_asked_for(prepared: Any) -> None:
    rows = [{"prompt": "a", "completion": " b" * (100 if number < 3 else 2)} for number in range(30)]
    with pytest.raises(DataError, match="3 of 30 rows"):
        prepared(rows, max_length=50)
    data = prepared(rows, max_length=50, truncation="drop")
    assert data.facts.train.dropped == {"longer than max_length": 3}
    assert (data.facts.train.rows_read, data.facts.train.rows_kept, len(data.train)) == (30, 27, 27)
    assert prepared(rows[2:], max_length=50).facts.train.dropped == {"longer than max_length": 1}
    assert data.facts.train.tokens_lost > 300
    assert data.facts.train.sources[0].tokens_lost == data.facts.train.tokens_lost


def test_facts_add_up(two_sources: Any) -> None:
    facts = two_sources({}, {}, validation=100).facts
    assert facts.validation.rows == 100
    assert facts.train.rows == 900
    assert sum(count for _, _, count in facts.train.histogram) == 900
    assert facts.train.quantiles["max"] == facts.train.histogram[-1][1] - 1
    assert facts.to_dict()["train"]["sources"][0]["files"][0]["sha256"]
