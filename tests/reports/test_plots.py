"""Scales, ticks, smoothing, thinning, numbers, redlines: the arithmetic under the pictures."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from peftcli.data.facts import histogram_of
from peftcli.reports import numbers
from peftcli.reports.difference import redline
from peftcli.reports.plots.bars import histogram
from peftcli.reports.plots.curves import Curve, curve_chart
from peftcli.reports.plots.grid import cells
from peftcli.reports.plots.scale import Scale, cover, cover_log, round_ticks
from peftcli.reports.record import LayerUpdate
from peftcli.reports.smoothing import running_mean, smooth, thin
from peftcli.reports.visible import clipped, short_path
from peftcli.visible import reveal


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_lie_inside_and_are_few(low, spread, wanted):
    ticks = round_ticks(low, low + spread, wanted)
    assert len(ticks) <= 2 * wanted + 1
    slack = 1e-6 * max(abs(low), spread)
    assert all(low - slack <= tick <= low + spread + slack for tick in ticks)


def test_scales():
    assert Scale(0, 10).fraction(2.5) == 0.25
    assert Scale(1, 100, logarithmic=True).fraction(10) == pytest.approx(0.5)
    assert cover_log([0.1, 10.0]) is not None
    assert cover_log([1.0, 2.0]) is None
    assert cover_log([0.0, 100.0]) is None
    assert 1.0 in Scale(0.05, 3, logarithmic=True).ticks(4)


@given(st.lists(st.floats(-1e9, 1e9), max_size=60))
@example([5e-324])
def test_a_scale_holds_its_values(values):
    scale = cover(values)
    assert scale.high > scale.low
    assert all(-1e-9 <= scale.fraction(value) <= 1 + 1e-9 for value in values)


def test_smoothing_keeps_a_constant_and_does_not_lag():
    assert all(value == pytest.approx(2.0) for _, value in smooth([(step, 2.0) for step in range(50)]))
    slope = [(step, 100.0 - step) for step in range(101)]
    assert dict(smooth(slope))[50] == pytest.approx(50.0, abs=0.2)
    assert dict(running_mean(slope))[50] > 51


def test_thinning_keeps_ends_and_spikes():
    points = [(step, 1.0) for step in range(10_000)]
    points[7_777] = (7_777, 50.0)
    kept = thin(points, 200)
    assert len(kept) <= 210
    assert (7_777, 50.0) in kept
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert [step for step, _ in kept] == sorted({step for step, _ in kept})


def test_a_chart_places_its_points():
    curve = Curve("loss", "train", [(0, 4.0), (50, 2.0), (100, 0.0)], dots=True)
    drawn = curve_chart("loss", "Loss", "d", [curve]).drawing
    assert re.findall(r'<circle cx="([\d.]+)%" cy="([\d.]+)%"', drawn)[1] == ("50.000", "50.000")
    assert "Loss" in curve_chart("one", "Loss", "d", [Curve("loss", "train", [(5, 1.0)])]).drawing


def test_a_logarithmic_scale_says_so():
    falling = Curve("loss", "train", [(step, 10.0 ** -(step / 20)) for step in range(100)])
    level = Curve("loss", "train", [(step, 2.0 + step / 100) for step in range(100)])
    assert curve_chart("loss", "Loss", "d", [falling]).note == "logarithmic scale"
    assert curve_chart("loss", "Loss", "d", [falling], note="smoothed").note == "smoothed; logarithmic scale"
    assert curve_chart("loss", "Loss", "d", [level]).note is None


@pytest.mark.parametrize(("low", "high"), [(3, 8), (10, 45), (7, 70), (1, 1000)])
def test_bins_of_a_histogram_hold_as_many_numbers_as_they_are_wide(low, high):
    """Ranges that do not divide by the number of bins: none is of one whole number beside one of two."""
    bins = histogram_of(np.arange(low, high + 1))
    assert [count for _, _, count in bins] == [end - start for start, end, _ in bins]
    assert len({end - start for start, end, _ in bins[:-1]}) <= 1
    drawn = histogram("lengths", "Lengths", "d", bins, "tokens")
    widths = [float(each) for each in re.findall(r'<rect x="[^"]*" y="[^"]*" width="([\d.]+)%"', str(drawn))]
    assert len(widths) == len(bins)
    per_number = [width / (end - start) for width, (start, end, _) in zip(widths, bins, strict=True)]
    assert per_number == pytest.approx([per_number[0]] * len(bins), rel=0.02)


def test_blocks_and_modules_come_out_of_names():
    names = ["model.layers.3.mlp.up_proj", "transformer.h.11.attn.c_attn", "lm_head", "prompt_encoder.weight"]
    found = cells([LayerUpdate(name=name, norm=1.0) for name in names])
    assert [(cell.block, cell.module) for cell in found] == [(3, "mlp.up_proj"), (11, "attn.c_attn")]


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (numbers.count, 1234567, "1,234,567"),
        (numbers.compact, 12_345_678, "12.3 M"),
        (numbers.compact, 999_960, "1.00 M"),
        (numbers.data_size, 1536, "1.50 KiB"),
        (numbers.data_size, (1 << 30) - 1, "1.00 GiB"),
        (numbers.duration, 59.7, "1 min 00 s"),
        (numbers.duration, 3599.9, "1 h 00 min"),
        (numbers.duration, 0.416, "0.42 s"),
        (numbers.percent, 0.99999, "99.9 %"),
        (numbers.percent, 1.0, "100 %"),
        (numbers.percent, 0.0123, "1.23 %"),
        (numbers.plain, 3.17741, "3.177"),
        (numbers.plain, 5e-5, "5e-05"),
        (numbers.plain, None, "—"),
        (numbers.plain, float("nan"), "—"),
    ],
)
def test_numbers_as_written(function, value, text):
    assert function(value) == text


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_redline_gives_back_both_texts(reference, answer):
    pieces = redline(reference, answer)
    if pieces is not None:
        assert "".join(piece.text for piece in pieces if piece.kind != "missing") == answer
        assert "".join(piece.text for piece in pieces if piece.kind != "extra") == reference


def test_a_redline_is_left_out_where_it_would_not_help():
    assert redline("one two three", "vier fünf sechs sieben") is None
    assert [piece.kind for piece in redline("a b c", "a x c") or []] == ["same", "missing", "extra", "same"]


@given(st.text())
def test_what_is_revealed_can_be_seen_and_stays(text):
    shown = reveal(text)
    hidden = [char for char in shown if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert set(hidden) <= set("\n\t\u200c\u200d")
    assert not set(shown) & set("\x1b\x00\u202e\u2066\u200b\ufeff\u2028")
    assert reveal(shown) == shown
    shown.encode("utf-8")


def test_reveal_names_code_points_and_clipping_says_so():
    assert reveal("a\u202eb\x1b") == "a⟨U+202E⟩b⟨U+001B⟩"
    assert reveal("a\nb", one_line=True) == "a⟨U+000A⟩b"
    assert clipped("abcdef", 3) == "abc … (3 more characters)"
    assert clipped("abc", 3) == "abc"
    assert clipped("\x00\x00", 10) == "⟨U+0000⟩⟨U … (2 characters in all)"


def test_paths_of_a_machine_are_shortened():
    assert short_path("/home/someone/data/tales/eval.jsonl:17") == "tales/eval.jsonl:17"
    assert [short_path(text) for text in ("owner/name", "builtin:base", "data/x.jsonl")] == [
        "owner/name",
        "builtin:base",
        "data/x.jsonl",
    ]
