"""Noise on the input embeddings of the training passes (NEFTune, Jain et al. 2023, arXiv:2310.05914)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.errors import ModelError
from peftcli.models.structure import input_embedding

_KEY = "training.neftune_noise_alpha"


class EmbeddingNoise:
    """Adds u * alpha / sqrt(length * width) to embeddings (batch, length, width), u uniform in [-1, 1) for each number.

    The length is that of the padded batch, or of the packed sequence, as in the libraries that have this setting. The
    draws come from torch's generator, which each pass seeds: a resumed run draws the same.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.passes = 0

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        # what is measured or generated, and a reference that needs no gradient, is asked without noise
        if not (module.training and torch.is_grad_enabled()):
            return None
        self.passes += 1
        length, width = output.shape[-2:]
        limit = self.alpha / math.sqrt(length * width)
        noise = torch.empty_like(output, dtype=torch.float32, requires_grad=False).uniform_(-limit, limit)
        return output + noise.to(output.dtype)

    def require_heard(self) -> None:
        """Raises `ModelError` where training passes were taken and none came by the input embedding."""
        if not self.passes:
            raise ModelError(
                f"{_KEY} has no effect: this model does not call its input embedding in training", where=_KEY, fix=_FIX
            )


_FIX = "remove it"


@contextlib.contextmanager
def noisy_embeddings(model: nn.Module, alpha: float | None) -> Iterator[EmbeddingNoise | None]:
    """Noise for as long as the context lasts; None where `alpha` is. Raises `ModelError` without an input embedding."""
    if alpha is None:
        yield None
        return
    embedding = input_embedding(model)
    if embedding is None:
        raise ModelError(f"{_KEY} has no effect: this model has no input embedding", where=_KEY, fix=_FIX)
    noise = EmbeddingNoise(alpha)
    handle = embedding.register_forward_hook(noise)
    try:
        yield noise
    finally:
        handle.remove()
