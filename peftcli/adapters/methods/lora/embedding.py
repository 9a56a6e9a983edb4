"""The update of an embedding, and of an output embedding that is tied to it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftcli.adapters.base import InitContext
from peftcli.adapters.layers import AdapterLayer, unwrapped
from peftcli.adapters.lookups import look_up
from peftcli.adapters.methods.lora.config import LoraConfig
from peftcli.adapters.methods.lora.dora import RowNorms, merged_rows
from peftcli.adapters.methods.lora.linear import hold
from peftcli.models.weights import weight_view


class LoraEmbedding(AdapterLayer):
    """Rows of A (r, num_embeddings) are looked up, then mapped by B (embedding_dim, r); A starts at zero, B at N(0, 1).

    For DoRA the magnitude belongs to each of the embedding_dim columns, over the vocabulary.
    """

    lora_embedding_A: Tensor
    lora_embedding_B: Tensor

    def __init__(self, base_layer: nn.Module, r: int, scaling: float, config: LoraConfig) -> None:
        super().__init__(base_layer)
        view = weight_view(unwrapped(base_layer))
        num_embeddings, embedding_dim = view.shape
        self.r = r
        self.scaling = scaling
        self.config = config
        self.lora_embedding_A = nn.Parameter(torch.empty(r, num_embeddings, device=view.device))
        # LoRA-FA keeps the half that is drawn at random, which here is B
        hold(self, "lora_embedding_B", torch.empty(embedding_dim, r, device=view.device), trained=not config.freeze_a)
        self.magnitude = nn.Parameter(torch.empty(embedding_dim, device=view.device)) if config.use_dora else None
        self.row_norms = RowNorms() if config.use_dora else None

    def adapted(self, ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """E[x] + s B A[:, x], with DoRA column by column m / ||V|| times that."""
        return look_up(self, self._changed, ids, *args, **kwargs)

    def _changed(self, ids: Tensor, rows: Tensor) -> Tensor:
        """The rows of the changed table in the place of the base's."""
        # A is looked up as a table (vocabulary, r), which is its transpose on disk
        update = F.embedding(ids, self.lora_embedding_A.T) @ self.lora_embedding_B.T
        changed = rows + update * self.scaling
        if self.magnitude is not None:
            changed = changed * (self.magnitude / self.norms())
        return changed.to(rows.dtype)

    def norms(self) -> Tensor:
        """Norm of each embedding column of W + s (B A)^T, (embedding_dim,) float32, without gradient."""
        assert self.row_norms is not None
        view = weight_view(unwrapped(self.base_layer))
        norms: Tensor = self.row_norms(
            # the weight's own type: a float32 copy of a vocabulary's table is what the row norms avoid
            view.dense(view.dtype).T,
            self.lora_embedding_A,
            self.lora_embedding_B,
            self.scaling,
        )
        return norms

    def tensors(self) -> dict[str, Tensor]:
        named = {"lora_embedding_A": self.lora_embedding_A, "lora_embedding_B": self.lora_embedding_B}
        if self.magnitude is not None:
            named["lora_magnitude_vector"] = self.magnitude
        return named

    def plain_tensors(self) -> dict[str, Tensor]:
        """The same update at rank 2r: an embedding's start never shifts the base, the second half is zero."""
        zeros_a, zeros_b = torch.zeros_like(self.lora_embedding_A), torch.zeros_like(self.lora_embedding_B)
        return {
            **self.tensors(),
            "lora_embedding_A": torch.cat([self.lora_embedding_A.detach(), zeros_a]),
            "lora_embedding_B": torch.cat([self.lora_embedding_B.detach(), zeros_b], dim=1),
        }

    @torch.no_grad()
    def initialise(self, context: InitContext) -> None:
        self.lora_embedding_A.zero_()
        shape = self.lora_embedding_B.shape
        self.lora_embedding_B.copy_(torch.empty(shape).normal_(generator=context.generator))
        if self.magnitude is not None:
            self.magnitude.copy_(self.norms())

    def merged(self) -> dict[str, Tensor]:
        """E + s (B A)^T, with DoRA its columns at their lengths."""
        combined = weight_view(unwrapped(self.base_layer)).dense() + embedding_delta(self)
        if self.magnitude is not None:
            combined = merged_rows(combined.T, self.magnitude, self.norms()).T
        return {"weight": combined}


def embedding_delta(layer: LoraEmbedding) -> Tensor:
    """s (B A)^T, float32, (num_embeddings, embedding_dim)."""
    lookup, spread = layer.lora_embedding_A.detach().float().T, layer.lora_embedding_B.detach().float().T
    return (lookup @ spread) * layer.scaling


class LoraTiedHead(AdapterLayer):
    """The output embedding beside an adapted input embedding of the same tensor: the same update, transposed.

    y = W h + s A^T (B^T h): on disk `lora_A` is B^T (r, hidden) and `lora_B` is A^T (vocabulary, r).
    """

    def __init__(self, base_layer: nn.Module, embedding: LoraEmbedding) -> None:
        super().__init__(base_layer)
        self._embedding = (embedding,)  # in a tuple: shared, not a part of this module

    @property
    def embedding(self) -> LoraEmbedding:
        """The wrapper of the input embedding, which owns the pair."""
        return self._embedding[0]

    def adapted(self, x: Tensor) -> Tensor:
        """W h + s A^T (B^T h), (..., vocabulary)."""
        result: Tensor = self.base_layer(x)
        pair = self.embedding
        exact = x.to(pair.lora_embedding_B.dtype)
        update = F.linear(F.linear(exact, pair.lora_embedding_B.T), pair.lora_embedding_A.T)
        return (result + update * pair.scaling).to(result.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def initialise(self, context: InitContext) -> None:
        """Nothing of its own to start."""

    def merged(self) -> dict[str, Tensor]:
        """W + s (B A)^T."""
        return {"weight": weight_view(unwrapped(self.base_layer)).dense() + embedding_delta(self.embedding)}
