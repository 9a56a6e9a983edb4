"""`training.learning_rate: auto`: the method's own rate, scaled by the width of the base. Free of torch.

The rates at width 64 are the best of the quality benchmark (tests/benchmarks/quality.py). How they move with the width was
measured by tests/benchmarks/learning_rate_width.py on three pretrained bases, after 30 steps, on two objectives: `far`,
where the base has much to learn (its loss starts at 3.4, 14.1, 10.5), and `near`, where it has less (3.1, 6.1, 0.78).

    best rate        width 64         128              384              rule (exponent 0.5)
                     far     near     far     near     far     near     64     128    384
    lora             .0050   .0048    .023    .0096    .0059   .0010    .005   .0035  .0020
    bottleneck       .0065   .0003    .010    .0021    .0018   .0016    .005   .0035  .0020
    prompt_tuning            .028             .025             .015     .03    .021   .012
    bitfit                                    .17              .0003           .0071  .0041
    ln_tuning                .036             .11              .0006    .03    .021   .012

What is left to learn moves the best rate as much as the width does, in both directions. At 384 the rule lies between the
two for lora (losing 0.004 and 0.13 to the best) and next to the best for bottleneck and prompt_tuning: the exponent 0.5
stays, as a middle. For bitfit and ln_tuning on a base that is nearly where it should be, the rule is too high (0.79 and
0.81 at 384, untouched 0.78): start such a run lower.
"""

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
