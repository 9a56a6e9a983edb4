"""Random streams of training. Each forward pass is seeded by itself, so that a resumed step depends on no history."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator

import torch


def forward_seed(seed: int, step: int, micro_batch: int) -> int:
    """A 63-bit seed for one forward pass, independent between steps and micro-batches."""
    digest = hashlib.blake2b(f"{seed}/{step}/{micro_batch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_forward(seed: int, step: int, micro_batch: int, device: torch.device) -> None:
    """Seeds torch's global generators of the CPU and of `device` for one forward pass (dropout draws from them)."""
    value = forward_seed(seed, step, micro_batch)
    # torch.manual_seed formats a stack trace for each device that is not up yet: a millisecond a call
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)


@contextlib.contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Asks torch for deterministic kernels inside the block; where one is missing, torch warns."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    mode = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
