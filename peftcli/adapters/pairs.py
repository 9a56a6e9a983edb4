"""Low-rank updates of a plain model, whichever method made them, as a method is given them to write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """W + B A for some layers, and what else has changed.

    `updates`: path -> (A, B), A (r, in_features) and B (out_features, r); of an embedding A (r, num_embeddings) and
    B (embedding_dim, r). `biases`: path -> what a layer's bias has changed by, (out_features,). `whole`: paths of modules
    whose own tensors are the changed ones. `tied`: the input embedding's update is the output embedding's too.
    """

    updates: Mapping[str, tuple[Tensor, Tensor]]
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    tied: bool = False


Written = tuple[dict[str, Any], dict[str, Tensor]]
"""A method section as in a recipe, and tensors by the keys of its file."""
