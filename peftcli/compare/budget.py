"""`--budget`: how long each member trains, in steps."""

from __future__ import annotations

import re

from peftcli.errors import RecipeError

_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*([kMB]?)\s*(steps?|tokens?|min|s|h)")
_FACTORS = {"": 1, "k": 1_000, "M": 1_000_000, "B": 1_000_000_000}
_FIX = "for instance 200steps or 1Mtokens"


def budget_steps(text: str, tokens_per_step: float) -> int:
    """Optimizer steps of a budget such as `200steps` or `1Mtokens`; at least one.

    `tokens_per_step`: the mean of the recipe, without padding. Raises `RecipeError`.
    """
    match = _BUDGET.fullmatch(text.strip())
    if match is None:
        raise RecipeError(f"--budget {text} is no budget", fix=_FIX)
    amount, unit = float(match[1]) * _FACTORS[match[2]], match[3]
    if unit in ("min", "s", "h"):
        raise RecipeError("a budget in time is not supported yet", fix=_FIX)
    steps = amount if unit.startswith("step") else amount / tokens_per_step
    if steps < 1 and amount <= 0:
        raise RecipeError(f"--budget {text} trains nothing", fix=_FIX)
    return max(1, round(steps))
