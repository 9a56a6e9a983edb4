"""Random streams of training. Each forward pass is seeded by itself, so that a resumed step depends on no history."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import Any

import torch

CUBLAS_WORKSPACE = ":4096:8"
DETERMINISTIC_MODE = "warn"


def determinism() -> dict[str, Any]:
    """The flags under which a run computes, for its lock."""
    return {
        "deterministic_algorithms": DETERMINISTIC_MODE,
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE),
    }


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


def draws_digest(device: torch.device) -> str:
    """8 hex digits of the state that torch's global generator was left in: which numbers were drawn, and how many."""
    generator_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.default_generator.get_state()
    return hashlib.blake2b(generator_state.numpy().tobytes(), digest_size=4).hexdigest()


@contextlib.contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Asks torch for deterministic kernels inside the block; where one is missing, torch warns."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    mode = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_deterministic_debug_mode(DETERMINISTIC_MODE)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
