"""Feed-forward blocks that keep less, for as long as training lasts."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from peftcli.kernels.active import active, fell_back, took
from peftcli.kernels.gated import gated_product
from peftcli.kernels.names import GATED_MLP
from peftcli.models.gated_mlp import GatedMlp, gated_mlps


@contextlib.contextmanager
def gated_blocks(model: nn.Module, wanted: bool) -> Iterator[int]:
    """Inside the block each gated feed-forward part of the model keeps the inputs of its product; yields how many."""
    found = gated_mlps(model) if wanted else []
    before = [vars(block.module).get("forward") for block in found]
    for block in found:
        block.module.forward = _keeping_less(block, block.module.forward)
    try:
        yield len(found)
    finally:
        for block, forward in zip(found, before, strict=True):
            del block.module.forward
            if forward is not None:
                block.module.forward = forward


def _keeping_less(block: GatedMlp, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(forward)
    def run(*args: Tensor, **kwargs: Tensor) -> Tensor:
        if not active(GATED_MLP):
            return forward(*args, **kwargs)
        if len(args) != 1 or kwargs:
            fell_back(GATED_MLP, "a block is given more than its input")
            return forward(*args, **kwargs)
        took(GATED_MLP)
        product = gated_product(*block.inner(args[0]), block.part(block.activation))
        result: Tensor = block.part(block.down)(product)
        return result

    return run
