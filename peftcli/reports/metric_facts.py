"""What is known of a metric, stated by the metric itself and carried in the record: nobody guesses by its name."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Better = Literal["lower", "higher"]
"""Which direction of a metric is an improvement."""


class MetricFacts(BaseModel):
    """Direction, scale and kind of a metric."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    better: Better
    """Which way is an improvement."""
    fraction: bool = False
    """A share of rows or tokens, 0 to 1, shown in per cent."""
    smooth: bool = False
    """Moves with the last bits of the arithmetic and no further, as a loss does; a count of rows tips by whole rows."""
    unit: str = ""
    """What a value is counted in; empty for a bare number or a share."""
