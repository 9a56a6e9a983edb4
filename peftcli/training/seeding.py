"""Random streams of training. Each forward pass is seeded by itself, so that a resumed step depends on no history."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from peftcli.models.device import CUBLAS_VARIABLE, CUBLAS_WORKSPACE, before_start, kind_of

LENIENT, STRICT = "warn", "error"
_REFUSALS = ("does not have a deterministic implementation", "this operation is not deterministic")

Result = TypeVar("Result")


def deterministic_mode(device: torch.device | str) -> str:
    """torch's deterministic mode for forward and backward passes on a device.

    On CUDA the backward pass of attention takes its deterministic form only where torch may refuse an operation; where
    torch would merely warn, it takes the other, and no two runs are equal.
    """
    return STRICT if kind_of(device) == "cuda" else LENIENT


def determinism(device: torch.device | str) -> dict[str, Any]:
    """The flags under which a run computes, for its lock."""
    return {
        "deterministic_algorithms": deterministic_mode(device),
        "cublas_workspace": os.environ.get(CUBLAS_VARIABLE, CUBLAS_WORKSPACE),
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
def deterministic_kernels(mode: str = LENIENT) -> Iterator[None]:
    """Asks torch for deterministic kernels inside the block; where one is missing, torch warns or, `STRICT`, refuses."""
    before_start("cuda")
    before = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_deterministic_debug_mode(mode)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def refuses_determinism(error: BaseException) -> bool:
    """Whether torch raised because an operation has no deterministic kernel on this device."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _REFUSALS)


def refused_operation(error: BaseException) -> str:
    """What torch refused, in a few words."""
    text = " ".join(str(error).split())
    return text.split(" does not have")[0] if _REFUSALS[0] in text else f"cuBLAS, used before {CUBLAS_VARIABLE} was set"


def as_deterministic_as_possible(compute: Callable[[], Result], device: torch.device | str) -> Result:
    """`compute()` with deterministic kernels only; where torch has not all of them, again with those that there are.

    For work that can be begun anew. On the CPU nothing is asked for.
    """
    if deterministic_mode(device) == LENIENT:
        return compute()
    try:
        with deterministic_kernels(STRICT):
            return compute()
    except RuntimeError as error:
        if not refuses_determinism(error):
            raise
    with deterministic_kernels(LENIENT):
        return compute()


def stream_seed(seed: int, stream: str) -> int:
    """A seed of its own for each random stream of a run, so that no draw of one moves another."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "little") >> 1
