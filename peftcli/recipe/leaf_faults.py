"""What may stand in no value of a recipe, whatever its key: secrets, variables, numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from peftcli.errors import Fault
from peftcli.recipe.unknown_keys import Path, dotted
from peftcli.redaction import REMEDY as SECRET_REMEDY
from peftcli.redaction import holds_secret
from peftcli.yaml import Node


def leaves(node: Node, path: Path) -> Iterator[tuple[Path, Node]]:
    """Every value that holds no others, with its path."""
    if isinstance(node.value, dict):
        for key, child in node.value.items():
            yield from leaves(child, (*path, key))
    elif isinstance(node.value, list):
        for index, child in enumerate(node.value):
            yield from leaves(child, (*path, index))
    else:
        yield path, node


def leaf_fault(path: Path, node: Node, free: Collection[str]) -> Fault | None:
    """`free`: keys whose text may hold anything."""
    key = dotted(path)
    if isinstance(node.value, float) and not math.isfinite(node.value):
        return Fault(f"`{key}` is {node.value}; wanted a finite number", node.where)
    if not isinstance(node.value, str):
        return None
    is_free = key in free
    if holds_secret(node.value, words=is_free):
        return Fault(f"`{key}` holds a secret", node.where, SECRET_REMEDY)
    if "${" in node.value and not is_free:
        return Fault(
            f"`{key}` holds `${{...}}`, and a recipe has no variables",
            node.where,
            f"write the value, or give it with --set {key}=...",
        )
    # 64 Ki characters: more than any prompt or path, and small enough to be copied into every record
    if "\0" in node.value or len(node.value) > 1 << 16:
        return Fault(f"`{key}` holds a NUL character or more than 65,536 characters", node.where)
    return None
