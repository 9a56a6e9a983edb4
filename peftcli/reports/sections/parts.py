"""What sections are built of: headed blocks, tables with captions, quoted text, lists of facts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from peftcli.reports import numbers
from peftcli.reports.markup import Child, Markup, tag
from peftcli.reports.visible import clipped

MAX_FACTS = 120
_MAX_NAME = 120
_MAX_VALUE = 300
_UNIT = re.compile(r"(?<=\d) (?=%|points|tokens/s|[kMBT]\b|[KMGT]iB)")


def bound(text: str) -> str:
    """Numbers and their units kept on one line."""
    return _UNIT.sub("\u00a0", text)


def section(slug: str, title: str, *children: Child, lead: str | None = None) -> Markup:
    """A headed section; `slug` is its anchor."""
    head = tag(
        "div", tag("h2", title, id=f"{slug}-title"), tag("p", bound(lead)) if lead else None, class_="section-head"
    )
    body = tag("div", *children, class_="section-body")
    return tag("section", head, body, id=slug, aria_labelledby=f"{slug}-title")


def table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[Child]], *, numeric: bool = False) -> Markup:
    """A table whose first cell in a row is its heading. `numeric`: all other columns are set as numbers."""
    style = "number" if numeric else None
    head = tag("tr", [tag("th", text, scope="col", class_=style if i else None) for i, text in enumerate(headers)])
    body = [
        tag("tr", tag("th", row[0], scope="row"), [tag("td", cell, class_=style) for cell in row[1:]]) for row in rows
    ]
    whole = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", body))
    return tag("div", whole, class_="table", role="region", aria_label=caption, tabindex="0")


def quoted(text: str, limit: int) -> Markup:
    """Text from data or a model: its own direction, its own line breaks."""
    return tag("div", clipped(text, limit), class_="quoted", dir="auto")


def amount(value: float | None, text: str) -> Markup:
    """A number as written, with its exact value for machines."""
    return tag("data", text, value=repr(value) if value is not None else "")


def facts_list(pairs: Sequence[tuple[str, Child]]) -> Markup:
    """Names and values, each pair one line."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs], class_="facts")


def facts_table(caption: str, facts: Mapping[str, Any]) -> Markup | None:
    """Nested facts as one flat table of dotted names; None when there are none."""
    pairs = flatten(facts)
    rows: list[list[Child]] = [
        [clipped(name, _MAX_NAME), tag("span", clipped(value, _MAX_VALUE), dir="auto")]
        for name, value in pairs[:MAX_FACTS]
    ]
    if len(pairs) > MAX_FACTS:
        rows.append([f"{len(pairs) - MAX_FACTS} more", "see run.json"])
    return table(caption, ["Name", "Value"], rows) if rows else None


def flatten(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """`{"a": {"b": 1}}` -> `[("a.b", "1")]`; values as text."""
    flat: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            flat += flatten(value, f"{prefix}{name}.")
        else:
            flat.append((f"{prefix}{name}", _value_text(value)))
    return flat


def _value_text(value: Any) -> str:
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


def details(summary: Child, *children: Child, open_: bool = False) -> Markup:
    """A part that opens on demand, with keyboard as with pointer."""
    return tag("details", tag("summary", summary), *children, open=open_)
