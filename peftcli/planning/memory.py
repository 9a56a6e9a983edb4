"""What a run will need in memory, by part, from shapes alone. An estimate: the report sets it beside what was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass

PROCESS_BYTES = 480 << 20
"""Interpreter, torch and transformers once imported, on a CPU."""
_LOSS_ROWS = 1024


@dataclass(frozen=True)
class Shape:
    """What memory depends on. Sizes in elements; `bytes_per_element` is that of the base in training."""

    base_parameters: int
    trainable: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    vocab_size: int
    bytes_per_element: int
    base_bytes: int | None = None
    """Of the base's weights as they are stored, scales included; None where each takes `bytes_per_element`."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by part."""

    process_bytes: int
    base_bytes: int
    adapter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    loss_bytes: int

    @property
    def peak_bytes(self) -> int:
        """All parts together."""
        return sum(asdict(self).values())

    def to_dict(self) -> dict[str, int]:
        """Bytes by part, and their sum."""
        return {**asdict(self), "peak_bytes": self.peak_bytes}


def estimate(
    shape: Shape, *, micro_tokens: int, optimizer_tensors: float, on_cpu: bool, checkpoint_every: int
) -> MemoryEstimate:
    """Peak memory of training with `micro_tokens` padded tokens in one forward pass.

    `checkpoint_every`: 0 keeps every activation, N keeps those of N - 1 of N layers and the inputs of the others.
    """
    per_layer = (14 * shape.hidden_size + 4 * shape.intermediate_size) * shape.bytes_per_element
    boundary = 2 * shape.hidden_size * shape.bytes_per_element
    whole = shape.num_layers
    if checkpoint_every:
        recomputed = -(-shape.num_layers // checkpoint_every)
        # one block at a time is computed again, and then holds all of its activations
        whole = shape.num_layers - recomputed + 1
    activations = micro_tokens * (whole * per_layer + shape.num_layers * boundary)
    return MemoryEstimate(
        process_bytes=PROCESS_BYTES if on_cpu else 0,
        base_bytes=shape.base_parameters * shape.bytes_per_element if shape.base_bytes is None else shape.base_bytes,
        # trained tensors and their gradients are float32, whatever the base is
        adapter_bytes=shape.trainable * 4,
        gradient_bytes=shape.trainable * 4,
        optimizer_bytes=int(shape.trainable * 4 * optimizer_tensors),
        activation_bytes=activations,
        # logits, their softmax and its gradient, in float32
        loss_bytes=3 * 4 * min(micro_tokens, _LOSS_ROWS) * shape.vocab_size,
    )
