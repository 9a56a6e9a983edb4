"""How a weight is stored, hidden behind one view: methods read a base through it and never touch `.weight`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class WeightView:
    """A linear map or an embedding as methods see it: always (out_features, in_features), whatever the storage."""

    module: nn.Module
    transposed: bool  # Conv1D stores (in, out)

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features); for an embedding (num_embeddings, embedding_dim)."""
        rows, columns = self._stored.shape
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def _stored(self) -> Tensor:
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def device(self) -> torch.device:
        return self._stored.device

    @property
    def dtype(self) -> torch.dtype:
        return self._stored.dtype

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.module, "bias", None)
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The detached weight (out_features, in_features) in `dtype`; may share storage with the base: do not edit."""
        weight = self._stored.detach()
        return (weight.T if self.transposed else weight).to(dtype)

    def stored(self, dense: Tensor) -> Tensor:
        """A dense (out_features, in_features) tensor in the layout that the module stores."""
        return dense.T.contiguous() if self.transposed else dense


LINEAR_TYPES: tuple[type[nn.Module], ...] = (nn.Linear, Conv1D)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a plain linear map that methods can adapt."""
    return isinstance(module, LINEAR_TYPES)


def weight_view(module: nn.Module) -> WeightView:
    """The view of a linear layer, an embedding or a convolution of width one (Conv1D as GPT-2 has it)."""
    return WeightView(module, transposed=isinstance(module, Conv1D))
