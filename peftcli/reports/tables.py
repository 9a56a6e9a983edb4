"""Tables and running text for a terminal, by rich: at most 80 columns by default, colour where it is wanted.

A result is plain text, ready to be printed. Whatever it is made from is made visible first, so that a text can neither
drive the terminal nor be read as rich's own markup.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from peftcli.visible import reveal

WIDTH = 80
"""Characters of a line of a table or a text, unless another width is asked for."""
_GAP = 2


def text_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Sequence[int] = (),
    width: int = WIDTH,
    colour: bool = False,
) -> str:
    """A table of cells with a rule under its head. `numeric`: columns set to the right. The widest columns give way."""
    # `no_wrap`: a cell over two lines would look like two rows
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
    for index in range(len(headers)):
        table.add_column(justify="right" if index in numeric else "left")
    table.add_row(*(_cell(text, "bold") for text in headers))
    table.add_row(*(Rule(style="dim") for _ in headers))
    for row in rows:
        table.add_row(*map(_cell, row))
    return _drawn(table, width, colour=colour)


def _cell(text: str, style: str = "") -> Text:
    return Text(reveal(text, one_line=True), style, no_wrap=True, overflow="ellipsis")


def wrapped(text: str, width: int = WIDTH) -> Iterator[str]:
    """Running text as lines of at most so many columns; none where there is nothing to say."""
    words = " ".join(reveal(text, one_line=True).split())
    yield from _drawn(Text(words, overflow="fold"), width).split("\n") if words else ()


def paint(text: str, style: str, *, enabled: bool) -> str:
    """One line of ours in a colour of the terminal's own sixteen, whatever its length."""
    # twice the length, since a character may be two columns wide
    return _drawn(Text(text, style, no_wrap=True, overflow="ignore"), len(text) * 2 + 1, colour=enabled)


def _drawn(what: RenderableType, width: int, *, colour: bool = False) -> str:
    """What rich draws, as text, with everything set that it would otherwise read from the environment."""
    page = io.StringIO()
    console = Console(
        file=page,
        width=width,
        height=1,
        color_system="standard" if colour else None,
        force_terminal=colour,
        force_jupyter=False,
        no_color=not colour,
        legacy_windows=False,
        markup=False,
        highlight=False,
        emoji=False,
    )
    console.print(what, crop=False)
    return "\n".join(line.rstrip(" ") for line in page.getvalue().rstrip("\n").split("\n"))
