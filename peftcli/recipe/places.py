"""Places in a recipe's document: the node of a key, and whether it is known to be wrong."""

from __future__ import annotations

from peftcli.recipe.unknown_keys import Path
from peftcli.yaml import Node


class Places:
    """The document, and the paths of values that were taken out since they are wrong."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.bad: set[Path] = set()

    def node(self, path: Path) -> Node | None:
        """What stands at a path; None where the document ends before."""
        node: Node | None = self.root
        for part in path:
            node = node.child(part) if node is not None else None
        return node

    def existing(self, location: Path) -> Path:
        """The part of a pydantic location that exists in the document; names of union members are skipped."""
        path: Path = ()
        node = self.root
        # pydantic names members of unions and types in its location as well; the document has no such keys
        for part in location:
            inner = node.child(part)
            if inner is not None:
                path, node = (*path, part), inner
        return path

    def touches_bad(self, path: Path) -> bool:
        """Whether a value is wrong, or lies in or around one that is."""
        return any(path[: len(bad)] == bad or bad[: len(path)] == path for bad in self.bad if bad and path)

    def is_bad(self, key: str) -> bool:
        """Whether a key's value is wrong, or lies in one that is."""
        path = tuple(key.split("."))
        return any(path[: len(bad)] == bad for bad in self.bad)

    def is_given(self, key: str) -> bool:
        """Whether the recipe itself names a key, and with a value."""
        node = self.node(tuple(key.split(".")))
        return node is not None and node.value is not None

    def where(self, key: str) -> str:
        """Where a key stands, or the nearest section around it that does."""
        parts = key.split(".")
        while parts:
            node = self.node(tuple(parts))
            if node is not None:
                return node.key_where or node.where
            parts.pop()
        return self.root.where
