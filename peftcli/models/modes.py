"""The state in which a model is measured: evaluation mode, no graph, randomness of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module, *, seed: int = 0) -> Iterator[None]:
    """Evaluation mode without gradients and with shared generators seeded; mode and generators are restored afterwards.

    Not `inference_mode`: buffers that a model renews on the way (rotary caches) must stay usable for training.
    """
    # module by module, for a base may keep parts in evaluation mode on purpose
    modes = [(module, module.training) for module in model.modules()]
    # only the devices in use: forking the generators of every GPU would start each of them
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield
    finally:
        # weights that autocast cast without gradients: torch before 2.11 would hand the same copies to a training pass
        torch.clear_autocast_cache()
        for module, training in modes:
            module.training = training
