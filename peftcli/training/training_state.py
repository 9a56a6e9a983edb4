"""The state of a run between two steps: plain numbers, and nothing that a pure function of the recipe can tell."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, TypeAdapter


@dataclass
class TrainingState:
    """Everything a resumed run must know beside the tensors. `step` optimizer steps are done."""

    step: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    timed_tokens: int = 0
    timed_seconds: float = 0.0
    timed_steps: int = 0
    micro_batch_size: Annotated[int, Field(ge=1)] = 1
    evaluations: dict[int, dict[str, float | None]] = field(default_factory=dict)
    best_step: int | None = None
    best_value: float | None = None
    best_metric: str | None = None
    """The metric that `best_value` is of; a resumed run may ask for another."""
    planned_steps: int | None = None
    """Steps of the whole run when it was last started; a resumed run may be longer."""
    watched_value: float | None = None
    bad_evaluations: int = 0
    stopped_early: bool = False
    skipped_steps: list[int] = field(default_factory=list)
    blocked_steps: list[int] = field(default_factory=list)
    scaler_skips_in_a_row: int = 0
    scaler_skips: int = 0
    clipped_steps: int = 0
    warnings: list[str] = field(default_factory=list)
    # one float a step; kept as a tensor on disk, since a long run has many
    losses: list[float] = field(default_factory=list)
    # what each step logged beside its loss; None for a skipped one
    lines: list[dict[str, Any] | None] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON without the losses; numbers that are not finite become null."""
        facts = {
            item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name not in _IN_TENSORS
        }
        facts["evaluations"] = {
            str(step): {name: finite_or_none(value) for name, value in metrics.items()}
            for step, metrics in self.evaluations.items()
        }
        return facts

    @classmethod
    def from_dict(cls, facts: dict[str, Any], losses: list[float]) -> TrainingState:
        """The inverse of `to_dict`; `ValueError` names what does not fit."""
        known = {item.name for item in dataclasses.fields(cls)} - set(_IN_TENSORS)
        # a field that came later has there the value that it stood for
        facts = {**_FIELDS_SINCE, **facts}
        if set(facts) != known:
            raise ValueError(f"the training state has other fields: {', '.join(sorted(set(facts) ^ known))}")
        # the JSON mode of pydantic turns the text keys of `evaluations` into steps again, and little else
        state = _VALIDATE.validate_json(json.dumps({**facts, **{name: [] for name in _IN_TENSORS}}), strict=True)
        state.losses = losses
        if len(losses) != state.step:
            raise ValueError(f"{len(losses)} losses are kept for {state.step} steps")
        return state


_IN_TENSORS = ("losses", "lines")
_FIELDS_SINCE: dict[str, Any] = {"best_metric": None, "planned_steps": None}
"""What a checkpoint of an older version lacks, and what it meant there."""
_VALIDATE = TypeAdapter(TrainingState)


def finite_or_none(value: float | None) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if value is not None and math.isfinite(value) else None
