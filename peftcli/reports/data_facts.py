"""The facts about a run's data, as far as a report shows them; what a record does not hold is None or empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_BEYOND = 1e300


@dataclass(frozen=True)
class SourceFacts:
    """One source of a split. `share`: its part of an epoch; `asked`: the part that the weights ask for."""

    name: str
    format: str
    why: str
    rows: int | None
    tokens: int | None
    share: float | None
    asked: float | None


@dataclass(frozen=True)
class SplitFacts:
    """One split. `histogram`: (low, high, rows) with lengths in tokens; `dropped`: reason -> rows.

    `rows`: rows of tokens, which are not those kept where text was joined and cut.
    """

    name: str
    rows_read: int | None
    rows_kept: int | None
    dropped: dict[str, int]
    rows: int | None
    tokens: int | None
    trained_tokens: int | None
    tokens_lost: int | None
    quantiles: dict[str, float]
    histogram: list[tuple[float, float, int]]
    sources: list[SourceFacts]

    @property
    def rows_dropped(self) -> int:
        """Rows that were read and not kept, for whatever reason."""
        return sum(self.dropped.values())


def split_facts(data: Mapping[str, Any], split: str) -> SplitFacts | None:
    """Facts of `train` or `validation` out of `RunRecord.data`; None where there is no such split."""
    # a record may be of another version, or edited: what does not fit is left out, no report fails for it
    found = data.get(split)
    if not isinstance(found, Mapping):
        return None
    return SplitFacts(
        name=split,
        rows_read=_integer(found, "rows_read"),
        rows_kept=_integer(found, "rows_kept"),
        dropped=_counts(found.get("dropped")),
        rows=_integer(found, "rows"),
        tokens=_integer(found, "tokens"),
        trained_tokens=_integer(found, "trained_tokens"),
        tokens_lost=_integer(found, "tokens_lost"),
        quantiles={name: float(value) for name, value in _items(found.get("quantiles")) if _is_number(value)},
        histogram=_bins(found.get("histogram")),
        sources=[_source(entry) for entry in _list(found.get("sources")) if isinstance(entry, Mapping)],
    )


def _source(entry: Mapping[str, Any]) -> SourceFacts:
    return SourceFacts(
        name=str(entry.get("name", "")),
        format=str(entry.get("format", "")),
        why=str(entry.get("why", "")),
        rows=_integer(entry, "rows"),
        tokens=_integer(entry, "tokens"),
        share=_float(entry, "share"),
        asked=_float(entry, "asked"),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _float(facts: Mapping[str, Any], name: str) -> float | None:
    value: Any = facts.get(name)
    return float(value) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    # JSON has whole numbers that no float holds, and Python's reader takes NaN and Infinity
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _BEYOND


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def _integer(facts: Mapping[str, Any], name: str) -> int | None:
    value: Any = facts.get(name)
    return int(value) if _is_number(value) else None


def _counts(value: Any) -> dict[str, int]:
    return {str(name): int(number) for name, number in _items(value) if _is_number(number) and number > 0}


def _bins(value: Any) -> list[tuple[float, float, int]]:
    return [
        (float(entry[0]), float(entry[1]), int(entry[2]))
        for entry in _list(value)
        if isinstance(entry, list | tuple) and len(entry) == 3 and all(map(_is_number, entry))
    ]
