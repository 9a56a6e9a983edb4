"""What the model at the start of training says of each row, asked once, for losses that compare with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from peftcli.adapters.surgery import attached
from peftcli.data.cache import content_key, default_cache_dir
from peftcli.data.store import TokenStore
from peftcli.data.value_cache import load_values, save_values
from peftcli.evaluation.memory import memory_errors
from peftcli.models.modes import evaluating
from peftcli.runs.assembly import Assembly
from peftcli.tasks.base import Task
from peftcli.training.acceleration import forward_precision

TOKENS_AT_ONCE = 4096
"""Of rows, unpadded: a number of its own, so that no setting of a run changes the last bits of what is found."""


@dataclass(frozen=True)
class Remembered:
    """Where the answers are kept. `facts`: all that they depend on beside task and rows."""

    folder: Path
    facts: tuple[Any, ...]


def ask_model_at_start(assembly: Assembly) -> None:
    """Gives the run's rows what the model says of them, where the loss compares with that: asked before anything is
    attached, or of the adapter that training goes on from, before a step or a checkpoint has changed it."""
    prepared, resolved, task = assembly.prepared, assembly.prepared.plan.resolved, assembly.task
    if not task.has_reference:
        return
    data, attention = prepared.data, prepared.loaded.recipe.model.attention
    # sums on a CPU depend on how many threads share them
    cpu = [resolved.threads] if resolved.device == "cpu" else []
    start = {} if prepared.start is None else prepared.start.hashes
    base = assembly.base_fingerprint.exact
    facts = (base, start, resolved.device, *cpu, resolved.dtype, resolved.quantization, attention)
    # without dropout: what is compared with must not be a draw
    if (adapter := attached(assembly.model)) is not None:
        adapter.set_training(False)

    def asked(store: TokenStore, precision: AbstractContextManager[Any], name: str) -> TokenStore:
        return with_reference(
            task,
            assembly.model,
            store,
            pad_token_id=assembly.pad_token_id,
            precision=precision,
            remembered=Remembered(default_cache_dir(), (*facts, name)),
        )

    # as each will be compared: training rows in the precision of training, the others in the model's own
    train = asked(data.train, forward_precision(assembly.accelerator, assembly.model), resolved.precision)
    validation = None if data.validation is None else asked(data.validation, nullcontext(), resolved.dtype)
    assembly.prepared = replace(prepared, data=replace(data, train=train, validation=validation))


def with_reference(
    task: Task,
    model: nn.Module,
    store: TokenStore,
    *,
    pad_token_id: int,
    precision: AbstractContextManager[Any] | None = None,
    remembered: Remembered | None = None,
) -> TokenStore:
    """The rows with what a model as it stands says of them; as they are for a task that compares with none."""
    if not task.has_reference:
        return store
    key = None if remembered is None else content_key(task.name, _digest(store), *remembered.facts, _packages())
    if remembered is not None and key is not None:
        known = load_values(remembered.folder, key, (len(store), task.reference_numbers))
        if known is not None:
            return store.with_reference(known)
    found = np.zeros((len(store), task.reference_numbers))
    with evaluating(model), memory_errors("asking the model at the start", "a smaller data.max_length"):
        for rows in _batches(store):
            batch = task.collate([store[row] for row in rows], pad_token_id=pad_token_id)
            with precision or nullcontext():
                found[rows] = task.reference(model, batch)
    if remembered is not None and key is not None:
        save_values(remembered.folder, key, found)
    return store.with_reference(found)


def _batches(store: TokenStore) -> Iterator[list[int]]:
    """Rows of like length, longest first."""
    rows: list[int] = []
    for row in np.argsort(-store.lengths, kind="stable").tolist():
        if rows and (len(rows) + 1) * int(store.lengths[rows[0]]) > TOKENS_AT_ONCE:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


def _digest(store: TokenStore) -> str:
    found = hashlib.sha256()
    for row in store:
        for numbers, kind in ((row.input_ids, "<i4"), (row.weights, "<f4"), (row.parts, "<i4")):
            found.update(len(numbers).to_bytes(8, "little") + np.asarray(numbers, dtype=kind).tobytes())
    return found.hexdigest()


def _packages() -> Sequence[str]:
    return [f"{name} {metadata.version(name)}" for name in ("torch", "transformers")]
