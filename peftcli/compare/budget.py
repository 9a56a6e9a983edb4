"""`--budget`: how long each member trains."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from peftcli.errors import RecipeError

_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*([kMB]?)\s*(steps?|tokens?|min|s|h)")
_FACTORS = {"": 1, "k": 1_000, "M": 1_000_000, "B": 1_000_000_000}
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_FIX = "for instance 200steps, 1Mtokens or 10min"
STEP_KEYS = ("training.max_steps", "training.epochs")
"""Recipe keys that a budget takes the place of."""


@dataclass(frozen=True)
class Budget:
    """What each member may use."""

    text: str
    amount: float
    unit: Literal["steps", "tokens", "seconds"]

    def steps(self, tokens_per_step: float) -> int:
        """Optimizer steps of a budget that is no time. `tokens_per_step`: the mean of the member, without padding.

        Raises `RecipeError` for less than one."""
        found = self.amount if self.unit == "steps" else self.amount / tokens_per_step
        if found < 1:
            raise RecipeError(
                f"--budget {self.text} is less than one step, which has {tokens_per_step:,.0f} tokens", fix=_FIX
            )
        return round(found)


def parse_budget(text: str) -> Budget:
    """`200steps`, `1Mtokens` or `10min`. Raises `RecipeError`."""
    match = _BUDGET.fullmatch(text.strip())
    if match is None:
        raise RecipeError(f"--budget {text} is no budget", fix=_FIX)
    amount, unit = float(match[1]) * _FACTORS[match[2]], match[3]
    if amount <= 0:
        raise RecipeError(f"--budget {text} trains nothing", fix=_FIX)
    if unit in _SECONDS:
        return Budget(text.strip(), amount * _SECONDS[unit], "seconds")
    return Budget(text.strip(), amount, "steps" if unit.startswith("step") else "tokens")


def as_settings(steps: int) -> tuple[str, str]:
    """A number of steps, as for `--set`."""
    return "training.epochs=null", f"training.max_steps={steps}"
