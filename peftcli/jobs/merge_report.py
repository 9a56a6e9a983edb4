"""What was proven of a merge, as facts and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

WORTH_SAYING = 0.98
"""Where less of the adapter is left, what lost the rest is said."""


@dataclass(frozen=True)
class MergeReport:
    """What was proven. Differences are of logits, the largest in absolute value."""

    output: str
    dtype: str
    prompts: int
    max_difference: float
    tolerance: float
    positions: float
    """Share of positions that this holds for: below 1 where rounding alone moves some as far as the adapter does."""
    agreement: float
    """Share of positions where both models would pick the same token, or the same label."""
    adapter_effect: float
    """The same difference between base and base + adapter: how much there was to bake in."""
    logits_share: float | None
    """Share of that effect which the merged model has; None where it is too small to be measured."""
    update_share: float | None
    """Share of the exact update of the weights that the files hold; None where nothing is changed."""
    worst_weight: str | None
    """The weight that keeps least of its update."""
    worst_share: float | None
    weights: int
    """How many weights the adapter changes."""
    unmet: tuple[str, ...]
    """Adapted parts that no prompt reached: proven on the weights alone."""
    carried: int
    """Tensors of the base that its loaded class does not own, carried over unchanged."""
    arithmetic: str
    classifies: bool
    untied: bool
    dequantized: str | None
    """How the base's weights were stored that the merged ones were dequantized from; None for a plain base."""
    files: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints, as plain data."""
        return {**asdict(self), "files": list(self.files), "unmet": list(self.unmet)}


def merge_text(report: MergeReport) -> str:
    """What `peft merge` prints."""
    what = "label" if report.classifies else "token"
    lines = [
        f"merged into {report.output} ({report.dtype})",
        "proven by reloading it: every weight has the bits that were merged, "
        f"logits on {report.prompts} prompts differ by {report.max_difference:.2g} at most"
        + ("" if report.positions == 1.0 else f" at {report.positions:.0%} of positions"),
        f"(allowed {report.tolerance:.2g}; the adapter itself changes them by {report.adapter_effect:.2g}),",
        f"same most likely {what} at {100 * report.agreement:.1f} % of positions",
        _shares(report),
    ]
    if report.update_share is not None and min(report.update_share, report.logits_share or 1.0) < WORTH_SAYING:
        lines.append(f"rounding to {report.dtype} lost the rest; --dtype float32 keeps all of it")
    if report.unmet:
        shown = ", ".join(report.unmet[:3]) + (" ..." if len(report.unmet) > 3 else "")
        lines.append(f"no prompt reached {shown}: proven on the weights alone")
    if report.carried:
        lines.append(f"{report.carried} tensors of the base that this task does not use are carried over unchanged")
    if report.dequantized:
        lines.append(f"the base's weights are those that {report.dequantized} dequantizes to, as they were trained on")
    if report.untied:
        lines.append("input and output embeddings were tied and are now separate")
    return "\n".join(lines)


def _shares(report: MergeReport) -> str:
    if report.update_share is None or report.worst_share is None:
        return "the adapter changes no weight"
    logits = "too small to be measured" if report.logits_share is None else percent(report.logits_share)
    return (
        f"of the adapter's update {percent(report.update_share)} is in the weights"
        f" (least: {report.worst_weight}, {percent(report.worst_share)}); of its effect on the logits: {logits}"
    )


def percent(share: float) -> str:
    """A share as text, with a digit after the point."""
    return f"{100 * share:.1f} %"
