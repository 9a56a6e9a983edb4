"""HTML by construction: elements from `tag`, where every plain string is text and comes out escaped.

Only `Markup` passes unescaped, and only this module makes it. Text from data therefore cannot become an element, an
attribute or a link, whatever it holds.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator

from peftcli.visible import reveal

_VOID = frozenset({"meta", "br", "hr", "img", "link"})
_ELEMENT = re.compile(r"[a-z][a-zA-Z0-9]*\Z")
_ATTRIBUTE = re.compile(r"(?!on)[a-zA-Z][a-zA-Z0-9:-]*\Z")


class Markup(str):
    """HTML source that `tag` has built."""

    __slots__ = ()


Child = str | Markup | Iterable["Child"] | None
Attribute = str | int | float | bool | None


def tag(element: str, *children: Child, **attributes: Attribute) -> Markup:
    """One element. `class_` gives class, `stroke_width` gives stroke-width; None and False leave an attribute out.

    Raises `ValueError` for element or attribute names that are not plain words, for event handlers, and for links
    that leave the page.
    """
    if not _ELEMENT.match(element):
        raise ValueError(f"not an element name: {element!r}")
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    if element in _VOID:
        return Markup(f"<{element}{written}>")
    return Markup(f"<{element}{written}>{join(children)}</{element}>")


def join(children: Iterable[Child]) -> Markup:
    """Children one after another, strings escaped."""
    return Markup("".join(_flatten(children)))


def _flatten(children: Iterable[Child]) -> Iterator[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            yield str(child)
        elif isinstance(child, str):
            yield escape(child)
        else:
            yield from _flatten(child)


def escape(text: str) -> str:
    return html.escape(reveal(text), quote=True)


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    written = name.rstrip("_").replace("_", "-") if name != "viewBox" else name
    if not _ATTRIBUTE.match(written):
        raise ValueError(f"not an attribute that a report may have: {name!r}")
    if value is True:
        return f" {written}"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if written in {"href", "src"} and not text.startswith("#"):
        raise ValueError(f"a report links to itself only, not to {text!r}")
    return f' {written}="{escape(text)}"'
