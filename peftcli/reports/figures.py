"""The pictures of a report as SVG files of their own, for slides: what the page's style says stands in each element.

Programs that show slides know neither custom properties nor the width of a page, so a file has a fixed size, the colours of
paper, and no style sheet. What those colours are says `templates/page.css` alone.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

from peftcli.ownership import MARKDOWN_MARK
from peftcli.reports.folder import RunFacts
from peftcli.reports.plots.frame import Figure, LegendKey, key_mark
from peftcli.reports.sections.comparison import Comparison, comparison_section
from peftcli.reports.sections.curves import curves_section
from peftcli.reports.sections.updates import updates_section
from peftcli.reports.style import style_sheet

_WIDTH, _LEFT, _RIGHT, _TOP, _BELOW = 960, 120, 40, 72, 44
_SVG = "http://www.w3.org/2000/svg"
_FONT = "Helvetica, Arial, sans-serif"
_RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")
_AT_RULE = re.compile(r"@[^{]+\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}")
_CLASSES = re.compile(r"(?:\.[\w-]+)+")
_VARIABLE = re.compile(r"var\((--[\w-]+)(?:,([^()]*))?\)")
_DRAWN = frozenset(
    {
        "fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linejoin",
        "font-size", "vector-effect", "overflow",
    }
)  # fmt: skip


def figure_files(run: RunFacts) -> dict[str, str]:
    """File name -> SVG of each picture that the run's report has; on white, with title and legend."""
    files: dict[str, str] = {}
    for figure in _figures(run):
        slug = re.sub(r"[^a-z0-9]+", "-", figure.title.lower()).strip("-")[:60] or "figure"
        name, number = f"{slug}.svg", 1
        while name in files:
            number += 1
            name = f"{slug}-{number}.svg"
        files[name] = standalone(figure)
    return files


def _figures(run: RunFacts) -> Iterator[Figure]:
    compared = comparison_section(run)
    if compared is not None and isinstance(compared.facts, Comparison):
        for plot in compared.facts.plots:
            yield Figure(f"{plot.name}, base and tuned", plot.drawing, compared.facts.keys, plot.direction)
    for section in (curves_section(run), updates_section(run)):
        for figure in _within(None if section is None else section.facts):
            assert section is not None, "figures are of one"
            # a slide stands alone: the section that a page has it in is part of its name
            yield dataclasses.replace(figure, title=f"{section.title}: {figure.title}")


def _within(facts: object) -> Iterator[Figure]:
    """Every figure among the facts of a section."""
    if isinstance(facts, Figure):
        yield facts
    elif isinstance(facts, list | tuple):
        for item in facts:
            yield from _within(item)
    elif hasattr(facts, "__dataclass_fields__"):
        for name in facts.__dataclass_fields__:
            yield from _within(getattr(facts, name))


def standalone(figure: Figure) -> str:
    """One picture as a file: `_WIDTH` wide, nothing in it that a style sheet would have to say."""
    drawing = ElementTree.fromstring(str(figure.drawing))
    height = int(float(drawing.get("height", "200")))
    root = ElementTree.Element("svg", xmlns=_SVG, width=str(_WIDTH), height=str(height + _TOP + _BELOW))
    root.set("viewBox", f"0 0 {_WIDTH} {height + _TOP + _BELOW}")
    root.set("font-family", _FONT)
    for name in ("title", "desc"):
        found = drawing.find(name)
        if found is not None:
            ElementTree.SubElement(root, name).text = found.text
    ElementTree.SubElement(root, "rect", width="100%", height="100%", fill=_value("var(--card)", {}))
    _text(root, figure.title, "16", "28", "--ink", size="18")
    _legend(root, figure.keys)
    drawing.set("x", str(_LEFT))
    drawing.set("y", str(_TOP))
    drawing.set("width", str(_WIDTH - _LEFT - _RIGHT))
    root.append(drawing)
    if figure.note:
        _text(root, figure.note, str(_LEFT), str(height + _TOP + 36), "--soft", size="13")
    _dress(root)
    return f"{MARKDOWN_MARK}\n{ElementTree.tostring(root, encoding='unicode')}\n"


def _text(root: ElementTree.Element, text: str, x: str, y: str, colour: str, *, size: str) -> None:
    fill = _value(f"var({colour})", {})
    ElementTree.SubElement(root, "text", {"x": x, "y": y, "fill": fill, "font-size": size}).text = text


def _legend(root: ElementTree.Element, keys: object) -> None:
    x = 16
    for key in keys if isinstance(keys, list | tuple) else ():
        assert isinstance(key, LegendKey)
        mark = ElementTree.fromstring(str(key_mark(key.style, key.shape)))
        mark.set("x", str(x))
        mark.set("y", "42")
        root.append(mark)
        _text(root, key.text, str(x + 30), "52", "--soft", size="13")
        x += 56 + 7 * len(key.text)


def _dress(element: ElementTree.Element) -> None:
    """The style's rules as attributes of each element, and no classes, names or roles of a page."""
    classes = set((element.get("class") or "").split())
    if classes:
        variables, properties = _rules_for(frozenset(classes))
        for name, value in properties.items():
            element.set(name, _value(value, variables))
    for name in ("class", "role", "id", "aria-labelledby", "aria-hidden"):
        element.attrib.pop(name, None)
    for child in element:
        _dress(child)


@functools.cache
def _rules() -> list[tuple[frozenset[str], dict[str, str]]]:
    """Classes and declarations of the rules that ask for classes alone, in the sheet's order."""
    found = []
    for selectors, body in _RULE.findall(_AT_RULE.sub("", str(style_sheet()))):
        declared = dict(part.split(":", 1) for part in body.replace("\n", "").split(";") if ":" in part)
        for selector in selectors.strip().split(","):
            if _CLASSES.fullmatch(selector.strip()):
                found.append((frozenset(selector.strip().strip(".").split(".")), declared))
    return found


def _rules_for(classes: frozenset[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Custom properties, and what is drawn, of an element with these classes; more classes say more."""
    variables: dict[str, str] = {}
    drawn: dict[str, str] = {}
    for wanted, declared in sorted(_rules(), key=lambda rule: len(rule[0])):
        if wanted <= classes:
            variables |= {name: value for name, value in declared.items() if name.startswith("--")}
            drawn |= {name: value for name, value in declared.items() if name in _DRAWN}
    return variables, drawn


@functools.cache
def _paper() -> dict[str, str]:
    """The custom properties of the page itself, as on paper."""
    body = re.search(r":root\{([^{}]*)\}", str(style_sheet()))
    parts = (body[1] if body else "").replace("\n", "").split(";")
    return {name: value for name, _, value in (part.partition(":") for part in parts) if name.startswith("--")}


def _value(text: str, variables: dict[str, str]) -> str:
    """A value with every custom property replaced."""
    known = _paper() | variables
    for _ in range(4):
        text = _VARIABLE.sub(lambda found: known.get(found[1], found[2] or "none"), text)
    return text.removesuffix("px")
