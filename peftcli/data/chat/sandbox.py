"""Jinja, sandboxed as transformers does it, and bounded: what Jinja leaves unbounded is counted or refused here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn, cast

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from peftcli.data.chat.budget import MAX_REPEAT, Budget, TemplateLimit

MAX_DEPTH = 200
# a fixed day: a prompt that held today's date would make two equal runs differ
FIXED_DAY = (2024, 7, 26)
_FORBIDDEN = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
_FILTERS = frozenset(
    re.findall(
        r"\w+",
        "abs batch capitalize count default d dictsort e escape first float format groupby indent int items join last "
        "length list lower map max min reject rejectattr replace reverse round safe select selectattr slice sort "
        "string sum title trim truncate unique upper wordcount",
    )
)
_GROWING_METHODS = ("center", "ljust", "rjust", "zfill", "expandtabs")


class TemplateRefusal(Exception):
    """The template itself refuses the conversation (`raise_exception`)."""


class _Generation(Extension):
    """Accepts `{% generation %}` blocks as plain content: our mask does not need them."""

    tags = {"generation"}  # noqa: RUF012 - jinja reads a class attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates count their loops, their joins and their output against a `Budget`."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self.budget = Budget()
        own = {name: self.filters[name] for name in _FILTERS}
        self.filters = {name: self._bounded_filter(name, function) for name, function in own.items()}
        self.filters["tojson"] = self._to_json
        # counted through filters: these compile to plain calls, unlike intercepted operators and global functions
        self.filters["budget_written"] = self.budget.written
        self.filters["budget_loop"] = self.budget.loop
        self.filters["budget_add"] = self.budget.add
        self.filters["budget_concatenate"] = self.budget.concatenate
        self.globals = {
            **{name: self.globals[name] for name in ("range", "dict", "namespace", "joiner", "cycler")},
            "raise_exception": _refuse,
            "strftime_now": _fixed_day,
        }

    def parse_bounded(self, source: str) -> nodes.Template:
        """The template's tree with the counting built in. Raises `TemplateLimit` for what no chat template needs."""
        tree = self.parse(source)
        _check_depth(tree, 0)
        for node in tree.find_all(_FORBIDDEN):
            raise TemplateLimit(f"line {node.lineno}: a template may not load another one")
        counted: nodes.Template = _Counting().visit(tree)
        return counted

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise TemplateLimit("powers are not computed")
        if operator == "*":
            self._check_product(left, right)
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        result = super().call_binop(context, operator, left, right)
        return self.budget.written(result)

    def _check_product(self, left: Any, right: Any) -> None:
        for one, other in ((left, right), (right, left)):
            if isinstance(one, int) and hasattr(other, "__len__") and one * max(len(other), 1) > MAX_REPEAT:
                raise TemplateLimit(f"a repetition to more than {MAX_REPEAT:,} items")
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > 128:
            raise TemplateLimit("a product of very large numbers")

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            self._check_text_method(owner, function.__name__, args)
        result = super().call(context, function, *args, **kwargs)
        return self.budget.written(result)

    def _check_text_method(self, text: str, name: str, args: tuple[Any, ...]) -> None:
        if name in _GROWING_METHODS and any(isinstance(arg, int) and arg > MAX_REPEAT for arg in args):
            raise TemplateLimit(f"{name} to more than {MAX_REPEAT:,} characters")
        if name == "expandtabs":
            width = args[0] if args and isinstance(args[0], int) else 8
            self.budget.characters(text.count("\t") * max(width, 1))
        if name == "replace" and len(args) > 1 and isinstance(args[1], str):
            self.budget.characters(_replaced_length(text, str(args[0]), args[1]))
        if name == "join" and args and isinstance(args[0], (list, tuple)):
            self.budget.characters(len(text) * len(args[0]))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped

    def _bounded_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def bounded(*args: Any, **kwargs: Any) -> Any:
            for arg in (*args, *kwargs.values()):
                if name not in ("abs", "int", "float", "round", "string") and isinstance(arg, int) and arg > MAX_REPEAT:
                    raise TemplateLimit(f"filter {name} with a number above {MAX_REPEAT:,}")
            texts = [arg for arg in args if isinstance(arg, str)]
            if name == "replace" and len(texts) == 3:
                self.budget.characters(_replaced_length(*texts))
            lists = [arg for arg in args if isinstance(arg, (list, tuple, range))]
            if name == "join" and lists and texts:
                self.budget.characters(len(texts[-1]) * len(lists[0]))
            if name == "indent" and texts:
                width = next((arg for arg in (*args[1:], *kwargs.values()) if isinstance(arg, (int, str))), 4)
                self.budget.characters(texts[0].count("\n") * (width if isinstance(width, int) else len(width)))
            if name == "format" and texts:
                _check_format(texts[0])
            return self.budget.written(function(*args, **kwargs))

        # jinja passes a context or environment as the first argument to filters that carry its mark
        if hasattr(function, "jinja_pass_arg"):
            bounded.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
        return bounded

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        if isinstance(indent, int) and indent > 64:
            raise TemplateLimit("tojson with an indent above 64")
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        self.budget.characters(len(text))
        return text


class _Counting(NodeTransformer):
    """Wraps loops, written expressions and joins, so that each is counted when it runs."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered("budget_loop", cast(nodes.Expr, node.iter))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [
            child if isinstance(child, nodes.TemplateData) else _filtered("budget_written", child)
            for child in node.nodes
        ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        first, *rest = node.nodes
        return _filtered("budget_concatenate", first, *rest)

    def visit_Add(self, node: nodes.Add) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered("budget_add", node.left, node.right)


def _filtered(name: str, node: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _check_depth(node: nodes.Node, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise TemplateLimit(f"nested more than {MAX_DEPTH} deep")
    for child in node.iter_child_nodes():
        _check_depth(child, depth + 1)


def _replaced_length(text: str, old: str, new: str) -> int:
    return len(text) + text.count(old) * len(new)


def _check_format(pattern: str) -> None:
    width = 0
    for char in pattern:
        width = width * 10 + int(char) if char.isascii() and char.isdigit() else 0
        if width > MAX_REPEAT:
            raise TemplateLimit("a format to a very large width")


def _refuse(message: Any = "") -> NoReturn:
    raise TemplateRefusal(str(message))


def _fixed_day(pattern: str) -> str:
    import datetime

    return datetime.date(*FIXED_DAY).strftime(str(pattern)[:100])
