"""The pages' style sheet, which stands in `templates/page.css`."""

from __future__ import annotations

import functools
import re
from importlib import resources

from markupsafe import Markup

RUN_STYLES = 8
"""How many runs of a comparison the sheet can distinguish: its classes `run-0`, `run-1` and so on."""

# comments of the sheet are for us; on each page they would be kilobytes
_COMMENT = re.compile(r"/\*.*?\*/\n*", re.DOTALL)


@functools.cache
def style_sheet() -> Markup:
    """The whole sheet without its comments, to stand in a page as it is."""
    sheet = resources.files("peftcli.reports").joinpath("templates/page.css").read_text(encoding="utf-8")
    return Markup(_COMMENT.sub("", sheet))


def run_style(index: int) -> str:
    """The class of a run by its place in a comparison."""
    return f"run-{index % RUN_STYLES}"
