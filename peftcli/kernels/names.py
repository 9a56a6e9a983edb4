"""The names of the fast paths as recipes write them, free of torch."""

from __future__ import annotations

from collections.abc import Mapping

OFF = "off"
"""Every pass is plain."""
LOW_RANK = "low_rank"
"""Linear layers with a low-rank update."""
GATED_MLP = "gated_mlp"
"""Feed-forward blocks with a gate."""
LABEL_LOSS = "label_loss"
"""Head and loss of the tokens that carry loss."""

IN_LAYERS = frozenset({LOW_RANK, GATED_MLP})
"""Fast paths within the model's layers."""

KERNELS: Mapping[str, str] = {
    LOW_RANK: "a frozen linear layer and its low-rank update as one function, computed in the base's type",
    GATED_MLP: "the gated product of a feed-forward block, computed again in the backward pass instead of being kept",
    LABEL_LOSS: "head and loss in chunks of the tokens that carry loss, gradients on the way; no logits are kept",
}
"""Name of each fast path -> what it does."""
