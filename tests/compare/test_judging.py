"""Which member is best, what cannot be told apart from it, and who is beaten in quality and cost at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from peftcli.compare.figures import Variant
from peftcli.compare.judging import judge
from peftcli.evaluation.registry import get_metric
from peftcli.evaluation.result import Table
from peftcli.reports.fronts import pareto_front

ROWS = 60
HIDDEN = np.random.default_rng(0).normal(2.0, 0.5, ROWS)


def variant(name: str, shift: float, *, noise: float = 0.01, memory: int = 100, metric: str = "loss") -> Variant:
    """Losses of rows of ten tokens, shifted by as much, which are otherwise those of every variant."""
    losses = HIDDEN + shift + np.random.default_rng(len(name)).normal(0, noise, ROWS)
    table = Table(get_metric(metric), np.stack([10 * losses, np.full(ROWS, 10.0)], axis=1), np.zeros(ROWS, dtype=int))
    low, high = table.interval()
    return Variant(name, name, (), table.value(), low, high, table, 10, 10, memory, 1.0)


FACTS = get_metric("loss").facts


def test_rows_in_pairs_tell_what_intervals_cannot() -> None:
    best, near, far = variant("best", 0.0), variant("near", 0.05), variant("far", 0.4)
    verdict = judge([far, near, best], "eval_loss", FACTS)
    assert verdict.best is best
    assert [other.name for other, _ in verdict.others] == ["near", "far"]
    assert best.high > near.low, "their own intervals overlap"
    assert verdict.alike == []
    delta = verdict.others[0][1]
    assert delta is not None
    assert delta.delta == pytest.approx(near.value - best.value)
    assert delta.lo < delta.delta < delta.hi


def test_what_cannot_be_told_apart_is_said_with_what_it_saves() -> None:
    pair = [variant("one", 0.0, noise=0.3), variant("other", 0.0, noise=0.3)]
    best = min(pair, key=lambda each: each.value)
    twin = replace(next(each for each in pair if each is not best), peak_memory_bytes=10)
    verdict = judge([best, twin], "eval_loss", FACTS)
    assert verdict.alike == [twin]
    text = " ".join(verdict.sentences())
    assert "cannot tell apart" in text
    assert f"If memory counts, take {twin.name}" in text


def test_higher_is_better_turns_the_order() -> None:
    facts = get_metric("exact_match").facts
    low, high = replace(variant("low", 0.0), table=None), replace(variant("high", 0.5), table=None)
    assert judge([low, high], "eval_exact_match", facts).best is high
    assert judge([low, high], "eval_loss", FACTS).best is low


def test_the_front_holds_what_nobody_beats_in_both() -> None:
    cheap, good, bad = variant("cheap", 0.3, memory=1), variant("good", 0.0, memory=50), variant("bad", 0.4, memory=60)
    twin = replace(good, name="twin")
    found = [cheap, good, bad, twin]
    front = pareto_front({each.name: (each.value, float(each.peak_memory_bytes)) for each in found}, FACTS)
    assert front == {"cheap", "good", "twin"}
