"""Pages from templates. Whatever a template writes is text and comes out escaped, with nothing in it unseen.

Only `Markup` passes as it is: pictures (`plots/`), the style sheet, and what the templates themselves make. Text from
data therefore cannot become an element, an attribute or a link, whatever it holds.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from peftcli.ownership import HTML_MARK
from peftcli.reports.plots.frame import key_mark
from peftcli.reports.sections.parts import bound
from peftcli.reports.style import style_sheet
from peftcli.visible import reveal

if TYPE_CHECKING:
    from jinja2 import Environment

# should an escape ever fail, a page still runs and loads nothing
CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_LINE_END = re.compile(r"[ \t]*\n[ \t]*")


def render(template: str, **facts: object) -> str:
    """A page from one of the templates. Raises `jinja2.UndefinedError` where it reads a value that it was not given."""
    return _environment().get_template(template).render(facts) + "\n"


@functools.cache
def _environment() -> Environment:
    # imported on the first page: what only reads a record has no need of it
    from jinja2 import Environment, PackageLoader, StrictUndefined

    class Templates(PackageLoader):
        """Line ends and indents of a template are for its readers: on the page they would be spaces between words."""

        def get_source(self, environment: Environment, template: str) -> tuple[str, str, Any]:
            source, path, is_current = super().get_source(environment, template)
            # a comment in their place, so that errors still name the line
            return _LINE_END.sub("{#-\n-#}", source.strip("\n")), path, is_current

    environment = Environment(
        loader=Templates("peftcli.reports"), autoescape=True, undefined=StrictUndefined, finalize=_written
    )
    environment.globals = {
        "key_mark": key_mark,
        "mark": Markup(HTML_MARK),
        "policy": CONTENT_SECURITY_POLICY,
        "style_sheet": style_sheet,
    }
    environment.filters["bound"] = bound
    return environment


def _written(value: Any) -> Any:
    """What a template puts on a page: made visible first; a template that has nothing to write is a fault of ours."""
    if value is None:
        raise ValueError("a template writes a value that is not there")
    return value if hasattr(value, "__html__") else reveal(str(value))
