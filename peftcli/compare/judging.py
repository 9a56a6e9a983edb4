"""What a comparison recommends, what it cannot tell apart, and what being wrong would cost. Sentences from facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peftcli.compare.figures import Variant, against, best_of
from peftcli.evaluation.result import Difference
from peftcli.reports import numbers
from peftcli.reports.metric_facts import MetricFacts


@dataclass(frozen=True)
class Verdict:
    """`best` is recommended; `others` with their difference to it, the nearest first."""

    best: Variant
    others: tuple[tuple[Variant, Difference | None], ...]
    metric: str
    facts: MetricFacts
    notes: tuple[str, ...] = ()
    """Sentences on how the comparison was made."""

    @property
    def alike(self) -> list[Variant]:
        """Those that these rows cannot tell from the best."""
        return [other for other, found in self.others if found is None or found.verdict == "unclear"]

    def sentences(self) -> list[str]:
        """For the terminal, the page and `compare.json`."""
        best, shown = self.best, self._shown
        lines = [
            f"{best.name} is best: {self.metric} {shown(best.value)} (95 %: {shown(best.low)} to {shown(best.high)})."
        ]
        for other, found in self.others[:3]:
            lines.append(f"{other.name}: {self._difference(other, found)}.")
        lines += [*self._changes(), *self.notes]
        if any(len(variant.members) == 1 for variant in (best, *(other for other, _ in self.others))):
            lines.append(
                "One seed each: another seed may order neighbours otherwise; --seeds 3 says how far they vary."
            )
        return lines

    def _difference(self, other: Variant, found: Difference | None) -> str:
        if found is None:
            return f"{self.metric} {self._shown(other.value)}, not compared row by row"
        # the best is never the worse one by its mean, whatever the rows say
        low, high = sorted((found.lo, found.hi) if self.facts.better == "lower" else (-found.lo, -found.hi))
        interval = f"95 %: {self._signed(low)} to {self._signed(high)}"
        clear = "" if found.verdict != "unclear" else ", which these rows cannot tell apart from it"
        return f"{self.metric} {self._shown(other.value)}, worse by {self._shown(abs(found.delta))} ({interval}){clear}"

    def _signed(self, value: float) -> str:
        return f"{'−' if value < 0 else ''}{self._shown(abs(value))}"

    def _changes(self) -> list[str]:
        """What would make another choice right."""
        lines = []
        for what, cost, shown in _COSTS:
            least = min(self.alike, key=cost, default=None)
            if least is not None and cost(least) < 0.9 * cost(self.best):
                lines.append(
                    f"If {what} counts, take {least.name}: {shown(cost(least))} instead of {shown(cost(self.best))}, "
                    "and no clear loss."
                )
        return lines

    def _shown(self, value: float) -> str:
        return numbers.metric_value(self.facts, value)


_COSTS = (
    ("memory", lambda variant: float(variant.peak_memory_bytes), numbers.data_size),
    ("time", lambda variant: variant.seconds, numbers.duration),
    ("size", lambda variant: float(variant.adapter_bytes), numbers.data_size),
)


def judge(variants: Sequence[Variant], metric: str, facts: MetricFacts, notes: Sequence[str] = ()) -> Verdict:
    """Raises `ValueError` for no variants."""
    best = best_of(variants, facts)
    sign = 1.0 if facts.better == "lower" else -1.0
    others = sorted((variant for variant in variants if variant is not best), key=lambda other: sign * other.value)
    return Verdict(best, tuple((other, against(best, other)) for other in others), metric, facts, tuple(notes))
