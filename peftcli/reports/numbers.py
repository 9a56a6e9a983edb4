"""Numbers as people read them. All functions are pure; None and non-finite values become an em dash."""

from __future__ import annotations

import math

from peftcli.reports.metric_facts import MetricFacts

MISSING = "—"

_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def is_missing(value: float | None) -> bool:
    """Whether a number is missing, NaN or infinite, and is shown as a dash."""
    return value is None or not math.isfinite(value)


def count(value: float | None) -> str:
    """12345 -> `12,345`."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def compact(value: float | None) -> str:
    """Three significant digits: 12345678 -> `12.3 M`."""
    if value is None or not math.isfinite(value):
        return MISSING
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        # 0.9995: what rounds to 1.00 of the next unit is shown in that
        if abs(value) >= size * 0.9995:
            return f"{_significant(value / size, 3)} {unit}"
    return _significant(value, 3)


def data_size(num_bytes: float | None) -> str:
    """Binary units: 1536 -> `1.50 KiB`."""
    if num_bytes is None or not math.isfinite(num_bytes):
        return MISSING
    size = float(num_bytes)
    for unit in _BINARY_UNITS:
        # from 1,023.5 on three digits would round to 1,024 of the smaller unit
        if abs(size) < 1023.5 or unit == _BINARY_UNITS[-1]:
            break
        size /= 1024
    return f"{size:,.0f} B" if unit == "B" else f"{_significant(size, 3)} {unit}"


def duration(seconds: float | None) -> str:
    """`0.42 s`, `41 s`, `2 min 05 s`, `1 h 12 min`, `3 d 4 h`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    # below, two digits with their decimals; from 9.95 on whole seconds say the same
    if seconds < 9.95:
        return f"{_significant(seconds, 2)} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def percent(fraction: float | None) -> str:
    """0.0123 -> `1.23 %`; three significant digits, never `100 %` for what is less."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    text = _significant(fraction * 100, 3)
    # 99.96 would round to 100, which would claim that all of it is
    if fraction < 1 and float(text) >= 100:
        text = "99.9"
    return f"{text} %"


def plain(value: float | None, digits: int = 4) -> str:
    """A number of unknown kind, to `digits` significant digits: 3.1774 -> `3.177`, 5e-05 -> `5e-05`."""
    if value is None or not math.isfinite(value):
        return MISSING
    # beyond these bounds decimals would be all zeros, or a row of digits that nobody measured
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}g}"
    return _significant(value, digits)


def metric_value(facts: MetricFacts | None, value: float | None) -> str:
    """A metric in its own unit: shares of 0 to 1 as percentages, all else plain."""
    return percent(value) if facts is not None and facts.fraction else plain(value)


def signed(text: str, value: float) -> str:
    """`text` (of the absolute value) with a real minus or a plus sign."""
    return ("−" if value < 0 else "+") + text


def _significant(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    # digits before the point take from those after it
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    if len(text.replace(",", "").replace("-", "").replace(".", "").lstrip("0")) > digits and decimals:
        text = f"{value:,.{decimals - 1}f}"  # rounding carried: 9.9996 -> 10.00 -> 10.0
    return text
