"""What sections are made of: their head and template, numbers with their exact value, nested facts as flat tables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftcli.reports import numbers
from peftcli.reports.visible import clipped

MAX_FACTS = 120
_MAX_NAME = 120
_MAX_VALUE = 300
# `M` and `k` only as whole words: `5 minutes` stays as it is
_UNIT = re.compile(r"(?<=\d) (?=%|points|tokens/s|[kMBT]\b|[KMGT]iB)")


def bound(text: str) -> str:
    """Numbers and their units kept on one line."""
    return _UNIT.sub("\u00a0", text)


@dataclass(frozen=True)
class Section:
    """A headed part of a page. `slug` is its anchor, `template` lays out its `facts`, `lead` stands under the title."""

    slug: str
    title: str
    template: str
    facts: object
    lead: str | None = None


@dataclass(frozen=True)
class Amount:
    """A number as written, with its exact value for machines."""

    value: float | None
    text: str

    @property
    def exact(self) -> str:
        """Digits that give the very number again; empty where there is none."""
        return "" if self.value is None else repr(self.value)


@dataclass(frozen=True)
class FactsTable:
    """Names and values. `more`: how many were left out."""

    caption: str
    rows: list[tuple[str, str]]
    more: int


def facts_table(caption: str, facts: Mapping[str, Any]) -> FactsTable | None:
    """Nested facts as one flat table of dotted names; None when there are none."""
    pairs = flatten(facts)
    rows = [(clipped(name, _MAX_NAME), clipped(value, _MAX_VALUE)) for name, value in pairs[:MAX_FACTS]]
    return FactsTable(caption, rows, max(0, len(pairs) - MAX_FACTS)) if rows else None


def flatten(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """`{"a": {"b": 1}}` -> `[("a.b", "1")]`; values as text."""
    flat: list[tuple[str, str]] = []
    for name, value in facts.items():
        # an empty section is a value like another: its name would be lost else
        if isinstance(value, Mapping) and value:
            flat += flatten(value, f"{prefix}{name}.")
        else:
            flat.append((f"{prefix}{name}", _value_text(value)))
    return flat


def _value_text(value: Any) -> str:
    # bool before int, which it is to Python
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: numbers.MISSING}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(_value_text(item) for item in value) or numbers.MISSING
    return json.dumps(value, ensure_ascii=False)
