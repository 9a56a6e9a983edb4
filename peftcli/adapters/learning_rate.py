"""`training.learning_rate: auto`: the method's own rate, scaled by the width of the base. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from peftcli.adapters.config import MethodConfig

MEASURED_WIDTHS = (64, 384)
"""Hidden sizes of the pretrained bases that the rates were measured on."""


@dataclass(frozen=True)
class AutoRate:
    """A resolved rate and how it came about."""

    rate: float
    note: str


def auto_rate(config: MethodConfig, hidden_size: int) -> AutoRate:
    """The method's rate at `learning_rate_width`, times (learning_rate_width / hidden_size) ** learning_rate_exponent.

    Two significant digits, so that the number can be written down. Beyond the measured widths the note says that it
    extrapolates.
    """
    scale = (config.learning_rate_width / hidden_size) ** config.learning_rate_exponent
    own = config.own_learning_rate()
    rate = float(f"{own * scale:.2g}")
    note = f"{config.name}: {own:g} at width {config.learning_rate_width}, scaled to {hidden_size}"
    if not MEASURED_WIDTHS[0] <= hidden_size <= MEASURED_WIDTHS[-1]:
        note += f" (extrapolated: measured from {MEASURED_WIDTHS[0]} to {MEASURED_WIDTHS[-1]})"
    return AutoRate(rate, note)
