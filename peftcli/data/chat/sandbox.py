"""Jinja, sandboxed as transformers does it: no attribute of Python's own, nothing that changes what it is given.

The environment is ours and not the one inside `apply_chat_template`, which knows the true date and draws at random where a
template asks: the same row would have other tokens tomorrow.

It bounds no work: that does the process in which a template runs (`bounds.py`), since any bound in here would know some
ways to work without end and not others.
"""

from __future__ import annotations

import datetime
import json
from typing import Any, NoReturn

from jinja2 import Environment, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import TrackingCodeGenerator
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from peftcli.data.chat.limits import TemplateRefusal
from peftcli.data.chat.names import DAY_VARIABLE, FIXED_DAY

_FORBIDDEN = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
# what they give differs from one rendering to the next
_RANDOM = ("random", "lipsum")


class _Generation(Extension):
    """Accepts `{% generation %}` blocks as plain content: our mask does not need them."""

    tags = {"generation"}  # noqa: RUF012 - jinja reads a class attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Dict:
    """`dict` without its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """Jinja's own, without names of Python's."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # no named parameter: a template may call an attribute `self`
        self, *given = args
        attributes = dict(*given, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may not hold {name!r}")


class _ComputesNothing(CodeGenerator):
    """Jinja's own, without its habit of working out constant expressions while it compiles: that is work of the template,
    done again in every compilation, and what stops it there is taken for a reason to try once more when it runs."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, (nodes.TemplateData, nodes.Const)):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


class _Reads(_ComputesNothing, TrackingCodeGenerator):
    """Jinja's own finder of variables that a template reads, computing nothing either."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.optimizer = None


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of chat templates, with the filters and globals that transformers gives them."""

    code_generator_class = _ComputesNothing

    def __init__(self, day: str = FIXED_DAY) -> None:
        # trimmed as transformers does it: other white space would be another prompt
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[loopcontrols, _Generation])
        self.filters["tojson"] = _to_json
        self.globals |= {
            "dict": _Dict(),
            "namespace": _Namespace,
            "raise_exception": _refuse,
            DAY_VARIABLE: datetime.date.fromisoformat(day).strftime,
        }
        for name in _RANDOM:
            self.filters.pop(name, None)
            self.globals.pop(name, None)

    def parse_alone(self, source: str) -> nodes.Template:
        """The template's tree. Raises `SecurityError` where it would load another template."""
        tree = self.parse(source)
        for node in tree.find_all(_FORBIDDEN):
            raise SecurityError(f"line {node.lineno}: a template may not load another one")
        return tree

    def variables_read(self, tree: nodes.Template) -> set[str]:
        """Names of the variables that somebody has to give to a template."""
        reads = _Reads(self)
        reads.visit(tree)
        return reads.undeclared_identifiers


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # jinja's own would write `<` and `&` as escapes
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: Any = "") -> NoReturn:
    raise TemplateRefusal(str(message))
