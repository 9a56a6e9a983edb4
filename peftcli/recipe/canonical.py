"""One spelling for everything: short forms become sections, hyphens in names and keys become ours."""

from __future__ import annotations

from typing import Any

from peftcli.errors import Fault
from peftcli.recipe.keys import METHOD, TYPE, arms, items_of, method_class, names_of, section_for, sections_of
from peftcli.recipe.schema import SHORT_FORMS, Recipe
from peftcli.yaml import Node


def canonical(root: Node, faults: list[Fault]) -> Node:
    """The recipe (or a part of one) with canonical keys, short forms expanded; two spellings of one key are a fault."""
    root = _section(root, Recipe, faults)
    return root


def _section(node: Node, section: Any, faults: list[Fault]) -> Node:
    if not isinstance(node.value, dict):
        return node
    found: dict[str, Node] = {}
    for written, child in node.value.items():
        key = written.replace("-", "_")
        field = section.model_fields.get(key) if section is not None else None
        # only a hyphen that makes a known key is another spelling; an unknown one is shown as it was written
        key = key if field is not None or section is None else written
        if key in found:
            faults.append(Fault(f"`{written}` is given twice, also as `{key}`", child.key_where, "keep one of the two"))
            continue
        if section is Recipe and key in SHORT_FORMS:
            child = _expanded(child, SHORT_FORMS[key])
        if section is Recipe and key == METHOD:
            child = _method(child, faults)
        elif field is not None:
            child = _value(child, field.annotation, faults)
        found[key] = child
    return Node(found, node.where, node.key_where)


def _expanded(node: Node, key: str) -> Node:
    if isinstance(node.value, str) or (isinstance(node.value, list) and key == "train"):
        # of `data` the short form may be a list, of sources; a base or method is always one name
        return Node({key: Node(node.value, node.where, node.where)}, node.where, node.key_where)
    return node


def _method(node: Node, faults: list[Fault]) -> Node:
    """Keys of a method are fields, written with underscores; the method's own class spells its values."""
    if not isinstance(node.value, dict):
        return node
    kind = node.value.get(TYPE)
    own = method_class(kind.value if kind is not None else None)
    renamed: dict[str, Node] = {}
    for written, child in node.value.items():
        key = written.replace("-", "_")
        if key in renamed:
            faults.append(Fault(f"`{written}` is given twice, also as `{key}`", child.key_where, "keep one of the two"))
            continue
        field = own.model_fields.get(key) if own is not None else None
        renamed[key] = child if field is None else _value(child, field.annotation, faults)
    return Node(renamed, node.where, node.key_where)


def _value(node: Node, annotation: Any, faults: list[Fault]) -> Node:
    if isinstance(node.value, str):
        return _word(node, annotation)
    if isinstance(node.value, list):
        item = items_of(annotation)
        if item is None:
            return node
        return Node([_value(child, item, faults) for child in node.value], node.where, node.key_where)
    if isinstance(node.value, dict) and (sections := sections_of(annotation)):
        node = _with_canonical_type(node, sections)
        kind = node.value.get(TYPE) if isinstance(node.value, dict) else None
        word = kind.value if kind is not None and isinstance(kind.value, str) else None
        return _section(node, section_for(annotation, word), faults)
    return node


def _with_canonical_type(node: Node, sections: list[Any]) -> Node:
    if not isinstance(node.value, dict) or not isinstance(kind := node.value.get(TYPE), Node):
        return node
    words = [word for section in sections if TYPE in section.model_fields
             for word in names_of(section.model_fields[TYPE].annotation)]  # fmt: skip
    return Node({**node.value, TYPE: _spelled(kind, words)}, node.where, node.key_where)


def _word(node: Node, annotation: Any) -> Node:
    sections = [section for section in sections_of(annotation) if TYPE in section.model_fields]
    # where text is allowed as well (a learning rate `auto`), a word stays a word
    if sections and str not in arms(annotation):
        short = Node({TYPE: Node(node.value, node.where, node.where)}, node.where, node.key_where)
        return _with_canonical_type(short, sections)
    return _spelled(node, names_of(annotation))


def _spelled(node: Node, words: list[str]) -> Node:
    if node.value in words:
        return node
    wanted = str(node.value).replace("-", "_")
    for word in words:
        if isinstance(node.value, str) and word.replace("-", "_") == wanted:
            return Node(word, node.where, node.key_where)
    return node
