"""What a reproduction found: facts only, rendered elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from peftcli.lock.differences import Difference

Level = Literal["bytes", "trace", "metrics"]
"""How closely two runs agree, from the same bytes to metrics within their bands."""
Cause = Literal["data order", "randomness", "numbers"]

LEVEL_TEXTS: dict[Level, str] = {
    "bytes": "bit for bit",
    "trace": "loss trace within tolerance",
    "metrics": "metrics within their bands",
}
"""Each level in words."""


@dataclass(frozen=True)
class Parting:
    """The first step at which two runs differ, and what parts them there."""

    step: int
    what: Cause
    detail: str


@dataclass(frozen=True)
class ComparedPart:
    """One thing that was compared. `passed` None: it differs, and need not be equal at this level."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class SeedResult:
    """One seed's run beside the locked one. `level`: the highest that holds, None where none does."""

    seed: int
    steps: int
    wanted: Level
    """The level that machine and versions oblige to."""
    level: Level | None
    findings: tuple[ComparedPart, ...]
    parting: Parting | None

    @property
    def held(self) -> bool:
        """Whether any level holds."""
        return self.level is not None


@dataclass(frozen=True)
class Reproduction:
    """The whole result. `folder` is where the new run lies; None where it was removed because nothing differs."""

    recipe: str
    lock: str
    strict: bool
    prefix: bool
    """Whether only the first steps were taken."""
    inputs: tuple[Difference, ...]
    environment: tuple[Difference, ...]
    seeds: tuple[SeedResult, ...]
    seconds: float
    folder: str | None = None

    @property
    def level(self) -> Level | None:
        """The level of the weakest seed."""
        order: Sequence[Level] = ("metrics", "trace", "bytes")
        levels = [result.level for result in self.seeds]
        return None if None in levels else min((level for level in levels if level), key=order.index)

    @property
    def held(self) -> bool:
        """Whether it reproduced; `strict` also asks for equal inputs, environment and bytes."""
        if self.strict and (self.inputs or self.environment or self.level != "bytes"):
            return False
        return self.level is not None

    @property
    def parting(self) -> Parting | None:
        """Where the first seed that parts does so; None where none does."""
        return next((result.parting for result in self.seeds if result.parting is not None), None)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "reproduced": self.held,
            "level": self.level,
            "recipe": self.recipe,
            "lock": self.lock,
            "strict": self.strict,
            "prefix": self.prefix,
            "first_differing_step": self.parting.step if self.parting else None,
            "parted_by": self.parting.what if self.parting else None,
            "inputs": [item.to_dict() for item in self.inputs],
            "environment": [item.to_dict() for item in self.environment],
            "seeds": [{**asdict(result), "held": result.held} for result in self.seeds],
            "seconds": round(self.seconds, 3),
            "folder": self.folder,
        }
