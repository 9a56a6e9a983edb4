"""YAML 1.2 for recipes: plain data only, every key and value with its place in the file.

PyYAML's parser gives the events; what they mean is decided here: the scalars of the core schema (`2e-5` is a number,
`no` a string, `010` is ten), no anchors, aliases or tags, no duplicate keys, bounded size and depth. PyYAML's own loaders
follow YAML 1.1 (`no` is false, `2e-5` a text), forget where a key stood, and let the last of two equal keys win.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import yaml

from peftcli.errors import Fault

MAX_BYTES = 1 << 20
"""Of a recipe: a larger file is refused unread."""
# far above what a recipe needs (three levels, some hundred values), far below what exhausts stack or memory
MAX_DEPTH = 50
MAX_NODES = 50_000

# the spellings of the core schema alone: `yes`, `on` and `NO` of YAML 1.1 are text
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_OCTAL, _HEXADECIMAL = re.compile(r"0o[0-7]+"), re.compile(r"0x[0-9a-fA-F]+")
# `int` refuses more than 4,300 digits; beyond 100 a number is read as a float
_INT = re.compile(r"[-+]?[0-9]{1,100}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_NAN = frozenset({".nan", ".NaN", ".NAN"})
_GLUED = re.compile(r"(\s*\w+):([^\s:/].*)")
"""A key and its value without a space between."""
# libyaml where PyYAML was built with it: much quicker, with the same events and marks
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Scalar = str | int | float | bool | None


def _events(text: str) -> Iterator[Any]:
    """The events of a text. The C parser of PyYAML 6.0.4 has a bound of its own on depth, beyond ours, and reads ahead:
    the Python parser then finds the place where ours is passed."""
    given = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            yield event
            given += 1
    except yaml.MarkedYAMLError as error:
        if "nesting depth" not in str(error.problem):
            raise
        yield from itertools.islice(yaml.parse(text, Loader=yaml.SafeLoader), given, None)


@dataclass(frozen=True)
class Node:
    """A value of a document with the places of the value and of its key (`file:line:column`, `--set key`)."""

    value: dict[str, Node] | list[Node] | Scalar
    where: str
    key_where: str | None = None

    def child(self, key: str | int) -> Node | None:
        """The node under a key or index; None where there is none."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            return self.value[key]
        return None


@dataclass
class ParsedText:
    """What a text holds. `node` is None when it is empty or cannot be read; `faults` is then not empty."""

    node: Node | None
    faults: list[Fault] = field(default_factory=list)


def parse(data: bytes, name: str) -> ParsedText:
    """Parses one document; never raises. `name` is the file as messages show it; every fault has its place."""
    text = _decode(data, name)
    if isinstance(text, Fault):
        return ParsedText(None, [text])
    return _Reader(text, name).read()


def parse_value(text: str, where: str) -> ParsedText:
    """The value of an override: quoted text, a flow list or section, or a plain scalar exactly as written."""
    text = text.strip()
    if not text.startswith(("{", "[", '"', "'")):
        return ParsedText(Node(scalar(text), where))
    parsed = _Reader(text, where, fixed=where).read()
    return parsed


def node_of(value: Any, where: str) -> Node | None:
    """Plain Python data as a node; None for what YAML has no place for."""
    # texts before sequences further down: a `str` is a `Sequence` of itself
    if value is None or isinstance(value, (bool, int, float, str)):
        return Node(value, where)
    if isinstance(value, PurePath):
        return Node(str(value), where)
    if isinstance(value, Mapping):
        children = {str(key): node_of(item, where) for key, item in value.items()}
        present = {key: Node(node.value, where, where) for key, node in children.items() if node is not None}
        # one value that has no place in YAML spoils the whole: what is left would be another recipe
        return Node(present, where) if len(present) == len(children) else None
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        items = [node for item in value if (node := node_of(item, where)) is not None]
        return Node(items, where) if len(items) == len(value) else None
    return None


def plain(node: Node) -> Any:
    """The data alone."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def scalar(text: str) -> Scalar:
    """A plain scalar by the core schema of YAML 1.2: integers are decimal, `0o17` or `0x1f`."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text) or _HEXADECIMAL.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if infinity := _INFINITY.fullmatch(text):
        return float(f"{infinity[1]}inf")
    return float("nan") if text in _NAN else text


def _decode(data: bytes, name: str) -> str | Fault:
    if len(data) > MAX_BYTES:
        return Fault(f"the file is larger than {MAX_BYTES:,} bytes", name, "a recipe is a page of text; is this one?")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4096]:
        # letters of UTF-16 are half zero bytes, and text in UTF-8 has none
        return Fault("the file is not UTF-8 (it looks like UTF-16, or like no text)", f"{name}:1:1", "save it as UTF-8")
    # Notepad writes a byte order mark, which would become part of the first key
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = _place_of_byte(data, error.start)
        return Fault(f"byte 0x{data[error.start]:02x} is not UTF-8", f"{name}:{place}", "save the file as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _place_of_byte(data: bytes, position: int) -> str:
    before = data[:position].decode("utf-8", errors="replace")
    return f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


class _Unusable(Exception):
    """Ends the reading of a document that goes beyond the bounds."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class _Reader:
    """One pass over the events of a document."""

    def __init__(self, text: str, name: str, fixed: str | None = None) -> None:
        self.text = text
        self.name = name
        self.fixed = fixed
        self.faults: list[Fault] = []
        self.nodes = 0

    def read(self) -> ParsedText:
        node = None
        try:
            node = self._document(_events(self.text))
        except yaml.MarkedYAMLError as error:
            self.faults.append(self._syntax_fault(error))
        except yaml.reader.ReaderError as error:
            self.faults.append(self._character_fault(error))
        except _Unusable as error:
            self.faults.append(error.fault)
        except yaml.YAMLError:
            self.faults.append(
                Fault("the file is not YAML", self._place(0, 0), "see `peft init` for a recipe that works")
            )
        # the tree up to a syntax fault is half a recipe: checking it would report keys that stand further down as
        # missing
        return ParsedText(
            None if any(fault.message.startswith("not YAML") for fault in self.faults) else node, self.faults
        )

    def _document(self, events: Iterator[Any]) -> Node | None:
        node = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent) and node is not None:
                raise _Unusable(Fault("a second document begins here", self._where(event), "one recipe per file"))
            if isinstance(event, yaml.NodeEvent):
                node = self._node(event, events, depth=1)
        return node

    def _node(self, event: Any, events: Iterator[Any], depth: int) -> Node:
        where = self._where(event)
        self._check_bounds(where, depth)
        self._check_plain(event, where)
        if isinstance(event, yaml.ScalarEvent):
            # a plain scalar is resolved, a quoted or block scalar is text
            return Node(scalar(event.value) if event.implicit[0] else event.value, where)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            for inner in events:
                if isinstance(inner, yaml.SequenceEndEvent):
                    break
                items.append(self._node(inner, events, depth + 1))
            return Node(items, where)
        if isinstance(event, yaml.MappingStartEvent):
            # an alias: the fault is told already, nothing can stand for it
            return Node(self._mapping(events, depth), where)
        return Node(None, where)

    def _mapping(self, events: Iterator[Any], depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                # reading goes on after a key given twice, so that one look shows every fault
                break
            key, key_where = self._node(event, events, depth + 1), self._where(event)
            child = self._node(next(events), events, depth + 1)
            name = key.value if isinstance(key.value, str) else self._odd_key(event, key_where)
            if name is None:
                continue
            if name in found:
                first = found[name].key_where or ""
                self.faults.append(
                    Fault(f"`{name}` is given twice, first at {self._short(first)}", key_where, "keep one of the two")
                )
                continue
            found[name] = Node(child.value, child.where, key_where)
        return found

    def _odd_key(self, event: Any, where: str) -> str | None:
        if isinstance(event, yaml.ScalarEvent) and event.value:
            return str(event.value)
        # `1: x` and `true: x` have names of another type: the schema then reports them as unknown keys
        self.faults.append(Fault("a key must be a name", where, "write `key: value`"))
        return None

    def _short(self, where: str) -> str:
        return where if self.fixed else "line " + ":".join(where.rsplit(":", 2)[1:])

    def _check_bounds(self, where: str, depth: int) -> None:
        self.nodes += 1
        if depth > MAX_DEPTH:
            raise _Unusable(Fault(f"nested more than {MAX_DEPTH} levels deep", where, "a recipe needs three"))
        if self.nodes > MAX_NODES:
            raise _Unusable(Fault(f"more than {MAX_NODES:,} values", where, "a recipe is a page of text; is this one?"))

    def _check_plain(self, event: Any, where: str) -> None:
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            sign = f"*{event.anchor}" if isinstance(event, yaml.AliasEvent) else f"&{event.anchor}"
            self.faults.append(
                Fault(
                    f"anchors and aliases (`{sign}`) are not part of a recipe",
                    where,
                    "repeat the value, or use `extends`",
                )
            )
        tag = getattr(event, "tag", None)
        if tag:
            name = str(tag).replace("tag:yaml.org,2002:", "!!")
            self.faults.append(
                Fault(f"tags (`{name}`) are not part of a recipe", where, "remove the tag; a recipe is plain data")
            )

    def _where(self, event: Any) -> str:
        return self._place(event.start_mark.line, event.start_mark.column)

    def _place(self, line: int, column: int) -> str:
        return self.fixed or f"{self.name}:{line + 1}:{column + 1}"

    def _character_fault(self, error: yaml.reader.ReaderError) -> Fault:
        position = error.position if isinstance(error.position, int) else 0
        # the C reader counts in bytes of UTF-8, the Python reader in characters
        before = self.text.encode("utf-8")[:position].decode("utf-8", errors="replace")
        line, column = before.count("\n"), len(before) - before.rfind("\n") - 1
        return Fault("not YAML: a control character", self._place(line, column), "remove it")

    def _syntax_fault(self, error: yaml.MarkedYAMLError) -> Fault:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark is not None else (0, 0)
        problem = error.problem or "cannot be read"
        lines = self.text.split("\n")
        shown = lines[line] if line < len(lines) else ""
        indent = shown[: len(shown) - len(shown.lstrip())]
        if "\t" in indent:
            place = self._place(line, indent.index("\t"))
            # the parser's mark is where the line's first token would stand, not where the tab is
            return Fault("not YAML: a tab; YAML needs spaces", place, "indent with two spaces")
        begun = error.context_mark.line if error.context_mark is not None else line
        # `a:1` begins a text that goes on over the next lines: the parser stops where it ends, the fault is where it
        # begins
        glued = _GLUED.fullmatch(lines[begun]) if begun < len(lines) and "expected ':'" in problem else None
        if glued is not None:
            place = self._place(begun, glued.start(2))
            return Fault("not YAML: no space after the colon", place, f"`{glued[1].strip()}: {glued[2].strip()[:40]}`")
        opened = ""
        if error.context_mark is not None and error.context_mark.line != line:
            opened = f", begun at line {error.context_mark.line + 1}"
        return Fault(f"not YAML: {_plain_problem(problem)}{opened}", self._place(line, column), _remedy(problem))


def _plain_problem(problem: str) -> str:
    if "mapping values are not allowed" in problem:
        return "a `:` where no key can stand"
    if "unexpected end of stream" in problem or "<stream end>" in problem:
        return "the file ends inside a quoted text or bracket"
    if "cannot start any token" in problem:
        return "a character that no value can begin with"
    if "block end" in problem or "expected key" in problem or "'-' indicator" in problem:
        return "a line whose indentation fits neither the line above nor its section"
    return re.sub(r"^(did not find|could not find) ", "lacks the ", problem)


def _remedy(problem: str) -> str:
    if "mapping values are not allowed" in problem:
        return "put text that holds `: ` in quotes, and give the keys of a section the same indentation"
    if "cannot start any token" in problem:
        return "put the value in quotes"
    if "block end" in problem or "expected key" in problem or "'-' indicator" in problem:
        return "give the keys of a section the same indentation"
    return "close the quote or bracket" if "stream" in problem else "check this line and the one above"
