"""A recipe in the making, and what becomes of each key of the other tool's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["carried", "default", "dropped", "added"]
"""In the recipe; left out, since it is our default; nothing here stands for it; not in their file, where leaving it out
means something else than here."""


@dataclass(frozen=True)
class KeyFate:
    """What becomes of one key."""

    theirs: str | None
    """Dotted; None for what their file does not say."""
    value: Any
    outcome: Outcome
    ours: str | None = None
    remark: str | None = None


@dataclass
class Draft:
    """Keys of their file are taken one by one; what nobody took at the end has no counterpart."""

    given: Mapping[str, Any]
    fates: list[KeyFate] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    """Dotted key of ours -> value."""
    to_do: list[str] = field(default_factory=list)
    """What a person has to decide, since the file does not say it."""

    def __post_init__(self) -> None:
        self._left = _flat(self.given)

    # -- their keys ------------------------------------------------------------------------------------------------

    def has(self, theirs: str) -> bool:
        """Whether a dotted key, or a section under it, is there, with anything but null."""
        return self.look(theirs) is not None

    def look(self, theirs: str) -> Any:
        """The value under a dotted key, a section as a mapping; None where there is none. It is not taken."""
        value: Any = self.given
        for part in theirs.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return None
            value = value[part]
        return value

    def take(self, theirs: str) -> Any:
        """The same, and whatever becomes of it is told by who took it."""
        value = self.look(theirs)
        self._left = {
            key: other for key, other in self._left.items() if key != theirs and not key.startswith(f"{theirs}.")
        }
        return value

    def _is_left(self, theirs: str) -> bool:
        return any(key == theirs or key.startswith(f"{theirs}.") for key in self._left)

    # -- what becomes of them --------------------------------------------------------------------------------------

    def put(self, theirs: str, ours: str, value: Any, remark: str | None = None) -> None:
        """Their key is our key, with this value."""
        said = self.take(theirs)
        self.recipe[ours] = value
        self.fates.append(KeyFate(theirs, said, "carried", ours, remark))

    def drop(self, theirs: str, remark: str) -> None:
        """Nothing here stands for their key."""
        if self._is_left(theirs) and self.look(theirs) not in (None, ""):
            self.fates.append(KeyFate(theirs, self.take(theirs), "dropped", None, remark))

    def assume(self, ours: str, value: Any, remark: str) -> None:
        """What their tool does where its file says nothing, written out; an own word of the file has precedence."""
        if ours not in self.recipe:
            self.recipe[ours] = value
            self.fates.append(KeyFate(None, None, "added", ours, remark))

    def same(self, names: Mapping[str, str], convert: Callable[[Any], Any] = lambda value: value) -> None:
        """Keys that mean the same, in the order given: the first of several that stand for one of ours is taken."""
        for theirs, ours in names.items():
            if not self.has(theirs) or not self._is_left(theirs):
                continue
            if ours in self.recipe:
                self.drop(theirs, f"another key says `{ours}` already")
            else:
                self.put(theirs, ours, convert(self.look(theirs)))

    def without(self, remarks: Mapping[str, str]) -> None:
        """Keys that nothing here stands for, each with what to do."""
        for theirs, remark in remarks.items():
            self.drop(theirs, remark)

    def idle(self, values: Mapping[str, Sequence[Any]], remark: str = "off, as here") -> None:
        """Keys whose value here is off or usual: told, and left out."""
        for theirs, usual in values.items():
            value = self.look(theirs) if theirs in self._left else object()
            if any(value is one or (value == one and isinstance(value, type(one))) for one in usual):
                self.fates.append(KeyFate(theirs, self.take(theirs), "default", None, remark))

    def finish(self, advice: Mapping[str, str]) -> None:
        """Tells what nobody took; `advice`: by the key's last part."""
        for theirs, value in self._left.items():
            if value is not None and value != "":
                hint = advice.get(theirs.rsplit(".", 1)[-1], "no counterpart here")
                self.fates.append(KeyFate(theirs, value, "dropped", None, hint))
        self._left = {}


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
