"""What a run will need in memory, by part: what it stores, and what a rehearsed step holds (`step_memory`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from peftcli.planning.live_memory import Bytes

FRAMEWORK_BYTES = {"cpu": 440 << 20, "cuda": 600 << 20, "mps": 600 << 20}
"""Interpreter, torch and transformers once imported; on a GPU its context, and libraries that work beside torch."""
HEAP_SHARE = 0.6
"""What the C library keeps of its heap beyond what is in use, as a share of that: pieces that no request fits into any
more. Measured with glibc 2.36 on seven trainings of a base of 28M: 0.3 to 0.9, by the sizes of the tensors."""
CACHE_SHARE = 0.04
"""The same of torch's own allocator on a GPU."""
HELD_WHOLE = 1 << 25
"""Values of a base that a merge holds whole; of a larger one the weights stay in their files."""
FIRST_USE_BYTES = 30 << 20
"""Code and tables of the kernels, read in when they are first used."""


@dataclass(frozen=True)
class Stored:
    """Bytes that stay for the whole run. `dense_bytes`: the largest matrix of a packed base, unpacked for a product."""

    base_bytes: int
    adapter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    dense_bytes: int = 0


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by part at the peak of training, and the peaks of the other phases."""

    framework_bytes: int
    base_bytes: int
    adapter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    """What the backward pass needs, and what is computed on the way."""
    loss_bytes: int
    """What is as wide as the vocabulary."""
    workspace_bytes: int
    """What the allocator keeps beyond it, code of kernels, and a packed matrix unpacked."""
    evaluation_peak_bytes: int
    merge_peak_bytes: int

    @property
    def training_peak_bytes(self) -> int:
        """All parts together."""
        parts = asdict(self)
        return sum(parts[name] for name in parts if name not in _PEAKS)

    @property
    def peak_bytes(self) -> int:
        """Of the run: it trains and evaluates; merging is another command."""
        return max(self.training_peak_bytes, self.evaluation_peak_bytes)

    def to_dict(self) -> dict[str, int]:
        """Bytes by part, and the peaks."""
        return {**asdict(self), "training_peak_bytes": self.training_peak_bytes, "peak_bytes": self.peak_bytes}


_PEAKS = ("evaluation_peak_bytes", "merge_peak_bytes")


def estimate(stored: Stored, training: Bytes, evaluation: Bytes, *, device: str, merge_bytes: int) -> MemoryEstimate:
    """The estimate from what is stored and what a step and an evaluated batch hold beside it."""
    framework = FRAMEWORK_BYTES[device]
    kept = stored.base_bytes + stored.adapter_bytes
    # a gradient that comes when other things are gone is not there at the peak
    gradients = min(stored.gradient_bytes, training.gradients)
    return MemoryEstimate(
        framework_bytes=framework,
        base_bytes=stored.base_bytes,
        adapter_bytes=stored.adapter_bytes,
        gradient_bytes=gradients,
        optimizer_bytes=stored.optimizer_bytes,
        activation_bytes=training.total - gradients - training.loss,
        loss_bytes=training.loss,
        workspace_bytes=_workspace(training, stored, device),
        evaluation_peak_bytes=framework
        + kept
        + stored.optimizer_bytes
        + evaluation.total
        + _workspace(evaluation, stored, device),
        merge_peak_bytes=framework + merge_bytes,
    )


def _workspace(held: Bytes, stored: Stored, device: str) -> int:
    kept = HEAP_SHARE * held.heap if device == "cpu" else CACHE_SHARE * held.total
    return int(kept) + FIRST_USE_BYTES + stored.dense_bytes
