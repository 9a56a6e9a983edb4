"""What `peft combine` has done, as a document and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from peftcli.adapters.combining import OF_ANY_RANK


@dataclass(frozen=True)
class Part:
    """One of the adapters."""

    adapter: str
    factor: float
    """Its weight, as asked for."""
    layers: int
    effect: float
    """Largest change of a logit that the adapter makes by itself, on random tokens."""


@dataclass(frozen=True)
class CombineReport:
    """What was written. Differences are of logits on random tokens, the largest in absolute value."""

    output: str
    how: str
    parts: tuple[Part, ...]
    layers: int
    ranks: tuple[int, ...]
    """Ranks that occur, in ascending order."""
    density: float | None
    seed: int | None
    distance: float
    """Largest distance of a layer's update from the weighted sum of the parts', as a share of that sum's norm."""
    worst_layer: str
    effect: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The document that `--json` prints."""
        lists = {"ranks": list(self.ranks), "notes": list(self.notes), "parts": [asdict(part) for part in self.parts]}
        return {**asdict(self), **lists}


def combine_text(report: CombineReport) -> str:
    """What `peft combine` prints."""
    ranks = (
        " and ".join(map(str, report.ranks)) if len(report.ranks) < 3 else f"{report.ranks[0]} to {report.ranks[-1]}"
    )
    thinned = f", density {report.density:g}" if report.density is not None else ""
    drawn = f", seed {report.seed}" if report.seed is not None else ""
    lines = [f"{len(report.parts)} adapters combined by {report.how}{thinned}{drawn} into {report.output}"]
    lines += [
        f"  {part.factor:g} x {part.adapter} ({part.layers} layers; changes logits by {part.effect:.3g})"
        for part in report.parts
    ]
    lines += [
        f"{report.layers} layers of rank {ranks}; logits change by {report.effect:.3g} at most",
        f"updates differ from the weighted sum by {report.distance:.2g} of its norm at most ({report.worst_layer})",
    ]
    lines += [f"note: {note}" for note in report.notes]
    if report.how not in OF_ANY_RANK:
        lines.append("note: --how cat is the weighted sum itself; `peft evaluate` says which combination is good")
    return "\n".join(lines)
