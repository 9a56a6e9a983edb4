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

Beyond 384 the rate falls faster, with the exponent 0.78, up to a width of 8192, and stays from there. That line meets what
others found on real bases, where it was measured on none of ours:

    method         width  rule      published
    lora            2048  5.5e-4    1e-3 best of a sweep on Llama-3.2-1B   (Schulman et al. 2025, LoRA Without Regret)
    lora            4096  3.2e-4    3e-4 best of a sweep on Llama-3.1-8B   (the same)
    lora            5120  2.7e-4    2e-4 for 7B and 13B bases              (QLoRA, arXiv:2305.14314, table 9)
    lora            8192  1.9e-4    1e-4 for 33B and 65B bases             (the same)
    ia3             3072  4.0e-3    5e-3 best of three on Llama-3.2-3B     (method comparison of peft 0.21, MetaMathQA)
    prefix_tuning   3072  8.0e-3    5e-3 best of two, the same base        (the same)
    lokr            3072  2.4e-3    3e-3, the same base                    (the same)
    vera            3072  4.0e-3    1e-3, and 3e-3 for its kin, the same base (the same)
    adaption_prompt 3072  2.4e-3    5e-3, the same base                    (the same)

The sweeps also found the best rate of LoRA not to depend on the rank while the scale is lora_alpha / r, so the rule knows
none. Prompt tuning spreads most: 0.3 (arXiv:2104.08691) on T5, 1e-3 in the comparison above; expect to look for it. How
long a run is decides, too (loss after training, of the shipped base and data, and of the base of width 64):

    prompt_tuning, seeds 0 and 1     rule           0.05           0.1            0.2     0.3
    support, 48 steps, base 2.24     0.70, 0.50     0.50, 0.47     0.46, 0.38     0.43    3.67
    tales, 80 steps, base 3.18       2.97, 3.01     3.00, 3.01     3.00, 3.01     2.98
    chat (far), 48 steps             4.79           4.16                          (0.15: 3.72)
    support, 200 steps               0.216          0.209 (0.049)  0.209
    exact match after 200 steps      31.5 %         4 % (0.049)    4 %

A short run, or one far from the base, gains by two to five times the rule; a longer one writes fewer answers right by it,
and 0.3 is near divergence. The rule keeps to the longer run.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftcli.adapters.config import MethodConfig

MEASURED_WIDTHS = (64, 384)
"""Hidden sizes of the pretrained bases that the rates were measured on."""
PUBLISHED_EXPONENT = 0.78
"""Beyond the measured widths, unless a method's own exponent is larger."""
WIDEST = 8192
"""Hidden size of the widest bases that published rates are known for; the rate falls no further."""


@dataclass(frozen=True)
class AutoRate:
    """A resolved rate and how it came about."""

    rate: float
    note: str


def auto_rate(config: MethodConfig, hidden_size: int) -> AutoRate:
    """The method's rate at the width of a base; see the module's docstring for the two lines and their sources.

    Two significant digits, so that the number can be written down. Beyond the measured widths the note says that the
    published line is followed, or, on narrower bases, that it extrapolates.
    """
    own = config.own_learning_rate()
    # two digits: the third is far below what runs differ by
    rate = float(f"{own * _scale(config, hidden_size):.2g}")
    note = f"{config.name}: {own:g} at width {config.learning_rate_width}, scaled to {hidden_size}"
    low, high = MEASURED_WIDTHS
    if hidden_size > high:
        note += f" (by published rates: measured here from {low} to {high})"
    elif hidden_size < low:
        note += f" (extrapolated: measured from {low} to {high})"
    return AutoRate(rate, note)


def _scale(config: MethodConfig, hidden_size: int) -> float:
    measured = min(hidden_size, MEASURED_WIDTHS[-1])
    scale = (config.learning_rate_width / measured) ** config.learning_rate_exponent
    beyond = max(config.learning_rate_exponent, PUBLISHED_EXPONENT)
    # continuous where the lines meet, so that a base a little wider gets no other rate
    return float(scale * (measured / min(hidden_size, WIDEST)) ** beyond) if hidden_size > measured else float(scale)
