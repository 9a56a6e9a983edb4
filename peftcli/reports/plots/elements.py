"""SVG by construction: elements from `tag`, where every plain string is text and comes out escaped.

Pictures stay our own: a page shows them without a script, nothing is fetched, and text in them is set by the page's
style, which no plotting library offers. They are built by functions, where the page around them is a template: nearly
all that stands in a picture are computed places, and as a template it would be loops around expressions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from markupsafe import Markup
from markupsafe import escape as escaped

from peftcli.visible import reveal

_ELEMENTS = frozenset({"svg", "title", "desc", "line", "circle", "rect", "path", "text"})
# an `href` would lead away from the page, `on...` would run something, `style` is the style sheet's
_ATTRIBUTE = re.compile(r"(?!on|href|xlink|src|style)[a-zA-Z][a-zA-Z0-9-]*\Z")

Child = str | Markup | Iterable["Child"] | None
"""What may stand inside a tag; texts are escaped, None is left out."""
Attribute = str | int | float | None


def tag(element: str, *children: Child, **attributes: Attribute) -> Markup:
    """One element. `class_` gives class, `stroke_width` gives stroke-width; None leaves a child or an attribute out.

    Raises `ValueError` for an element that no picture has, and for attributes that run something or lead elsewhere.
    """
    if element not in _ELEMENTS:
        raise ValueError(f"not an element of a picture: {element!r}")
    written = "".join(_attribute(name, value) for name, value in attributes.items() if value is not None)
    return Markup(f"<{element}{written}>{''.join(_flatten(children))}</{element}>")


def escape(text: str) -> Markup:
    """Text of a picture or a page: what is unseen in it is shown by its code point, what HTML would read is escaped."""
    return escaped(text if isinstance(text, Markup) else reveal(text))


def _flatten(children: Iterable[Child]) -> Iterator[str]:
    for child in children:
        if isinstance(child, str):
            yield escape(child)
        elif child is not None:
            yield from _flatten(child)


def _attribute(name: str, value: str | int | float) -> str:
    # Python keeps `class` for itself, and has no hyphens in names
    written = name.rstrip("_").replace("_", "-")
    if not _ATTRIBUTE.match(written):
        raise ValueError(f"not an attribute that a picture may have: {name!r}")
    # six digits place a point exactly on any screen, and keep a page small
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f' {written}="{escape(text)}"'
