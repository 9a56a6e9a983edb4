"""What must be equal to go on with a run, and the checkpoints that hold it."""

from __future__ import annotations

import hashlib
from typing import Any

from peftcli.recipe import flat_recipe
from peftcli.runs.assembly import Assembly
from peftcli.runs.folder import resolved_values
from peftcli.training.checkpoint import CHECKPOINTS, CheckpointStore

FREE_KEYS = (
    "name", "output", "tracking", "expect", "generation.", "evaluation.", "checkpoint.", "training.epochs",
    "training.max_steps", "training.lengthened", "training.processes", "training.sharding", "threads", "extends",
    "data.checks",
)  # fmt: skip
"""Recipe keys that a resumed run may change: logging, length, place."""


def run_identity(assembly: Assembly) -> dict[str, Any]:
    """What must be equal to resume: every recipe key that steers the numbers, the data, the base."""
    flat = flat_recipe(assembly.prepared.loaded.recipe) | resolved_values(assembly.prepared.plan.resolved)
    steering = {key: value for key, value in flat.items() if not key.startswith(FREE_KEYS)}
    facts = assembly.prepared.data.facts
    return {**steering, "data tokens": facts.train.stream_sha256, "data order": facts.train.order_sha256,
            "base weights": assembly.base_fingerprint.exact, **_start_identity(assembly)}  # fmt: skip


def _start_identity(assembly: Assembly) -> dict[str, Any]:
    start = assembly.prepared.start
    return {} if start is None else {"files of model.init_adapter": start.hashes}


def checkpoint_store(assembly: Assembly) -> CheckpointStore:
    """Where the run's checkpoints lie, and what a checkpoint must agree with."""
    identity = run_identity(assembly)
    keep = assembly.prepared.loaded.recipe.checkpoint.keep
    return CheckpointStore(assembly.folder / CHECKPOINTS, _run_id(identity), keep=keep, identity=identity)


def _run_id(identity: dict[str, Any]) -> str:
    return hashlib.sha256(repr(sorted(identity.items(), key=str)).encode()).hexdigest()[:16]
