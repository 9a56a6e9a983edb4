"""Gradient checkpointing: a block keeps its input only and computes its activations again in the backward pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextlib.contextmanager
def checkpointed_blocks(blocks: Sequence[nn.Module], every: int) -> Iterator[int]:
    """Checkpoints every `every`-th block inside the context (0: none); yields how many.

    Non-reentrant, so that gradients reach the adapters of a block whose input needs none.
    """
    chosen = list(blocks[::every]) if every else []
    # a forward of the instance itself (another hook's) is put back; the class's own is uncovered again
    before = [vars(block).get("forward") for block in chosen]
    for block in chosen:
        block.forward = _recomputed(block, block.forward)
    try:
        yield len(chosen)
    finally:
        for block, forward in zip(chosen, before, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        # nothing to save without a graph; recomputing would only cost time, and in generation break caches
        if not (block.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
