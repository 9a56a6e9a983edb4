"""Fits a run to the memory of its device: which rows go through at once, and whether layers are recomputed.

The effective batch never changes. What is chosen depends on the recipe, the data and the total memory alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from peftcli import system
from peftcli.data.store import EncodedRow, TokenStore
from peftcli.planning.live_memory import Bytes
from peftcli.planning.memory import HELD_WHOLE, MemoryEstimate, Stored, estimate
from peftcli.planning.sizes import size_text
from peftcli.planning.step_memory import Rehearsal
from peftcli.tasks.base import Batch
from peftcli.training.config import TrainingConfig

MICRO_TOKENS = {"cpu": 4096, "cuda": 16384, "mps": 4096}
"""Padded tokens of one forward pass that `micro_batch_size: auto` aims at: more are no faster."""
MEMORY_SHARE = 0.8
"""Share of the memory of the device that `auto` values may plan with."""
CARD_SHARE = 0.95
"""The same of a card that is named: nothing else runs on it but what the system keeps."""
MAX_ROWS = 4096
MOST_REMEDIES = 3
_SHORTEST = 64
"""Tokens of a row that is still worth training on."""


@dataclass(frozen=True)
class Needs:
    """A run's model on the meta device, what it stores, and its longest rows."""

    rehearsal: Rehearsal
    stored: Stored
    num_parameters: int
    largest_matrix: int
    """Values of the largest linear layer."""
    """Of the base."""
    train: Sequence[EncodedRow]
    validation: Sequence[EncodedRow] | None
    evaluation_rows: int
    pad_token_id: int
    device: str
    failures: list[str] = field(default_factory=list)
    """Why what a step holds could not be counted."""
    counted: dict[tuple[int, int], Bytes] = field(default_factory=dict)
    """Rows at once and recomputation -> what such a step holds, as far as it was asked for."""

    @property
    def longest(self) -> int:
        """Tokens of the longest training row."""
        return len(self.train[0].input_ids)

    def estimate(self, micro: int, every: int) -> MemoryEstimate:
        """Memory with `micro` of the longest rows at once and every `every`-th layer recomputed (0: none)."""
        if (micro, every) not in self.counted:
            batch, pads = self._batch(self.train[:micro])
            self.counted[micro, every] = self._tried(
                lambda: self.rehearsal.training(batch, pads=pads, checkpoint_every=every)
            )
        training = self.counted[micro, every]
        # held whole, a model is there in float32 twice, the merged one and the one read back, and what it changes; else
        # one matrix is, in float32 before and after, in float64 while it is proven, and in its file's type
        whole = self.num_parameters <= HELD_WHOLE or self.stored.dense_bytes > 0
        merging = 8 * self.num_parameters + self.stored.base_bytes if whole else 24 * self.largest_matrix
        merging += self.stored.adapter_bytes
        return estimate(self.stored, training, self._evaluation, device=self.device, merge_bytes=merging)

    @cached_property
    def _evaluation(self) -> Bytes:
        rows = (self.validation or [])[: self.evaluation_rows]
        if not rows:
            return Bytes()
        batch, pads = self._batch(rows)
        return self._tried(lambda: self.rehearsal.evaluation(batch, pads=pads))

    def _tried(self, count: Callable[[], Bytes]) -> Bytes:
        """Nothing where the model does not run without values; `failures` then says so."""
        try:
            return count()
        except Exception as error:  # whatever a foreign forward raises on the meta device
            self.failures.append(f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")
            return Bytes()

    def _batch(self, rows: Sequence[EncodedRow]) -> tuple[Batch, bool]:
        """Collated, and whether rows are padded."""
        pads = len({len(row.input_ids) for row in rows}) > 1
        return self.rehearsal.task.collate(rows, pad_token_id=self.pad_token_id), pads


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what it takes."""

    micro_batch_size: int
    checkpoint_every: int
    memory: MemoryEstimate
    budget_bytes: int | None
    fits: bool
    notes: tuple[str, ...]


def longest_rows(store: TokenStore) -> list[EncodedRow]:
    """The longest rows of a store, longest first."""
    order = np.argsort(-np.asarray(store.lengths), kind="stable")[:MAX_ROWS]
    return [store[int(index)] for index in order]


def total_memory_bytes(device: str, processes: int = 1) -> int:
    """Total memory of the device: never what is free at the moment, so that `auto` values repeat. Each of several
    `processes` has a GPU of its own; the machine's memory they share."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return system.total_memory_bytes() // processes


def choose(
    needs: Needs, training: TrainingConfig, *, device: str, device_memory: int | None, processes: int = 1
) -> Choice:
    """The first of the settings that the recipe leaves open which fits, from the fastest on; else the smallest."""
    # a card that is named need not be here to be asked
    there = total_memory_bytes(device, processes) if device_memory is None else device_memory
    budget = there * (MEMORY_SHARE if device_memory is None else CARD_SHARE)
    for every, sizes in _settings(needs, training, device):
        for micro in _worth_trying(needs, sizes, every, budget):
            memory = needs.estimate(micro, every)
            if memory.peak_bytes <= budget:
                notes = _notes(training, micro, every, memory, sizes[0])
                return Choice(micro, every, memory, device_memory, True, (*notes, *_uncounted(needs)))
    # a recipe that says everything itself is run as it says, and is told only against a card that was named
    fits = memory.peak_bytes <= there
    notes = _notes(training, micro, every, memory, sizes[0])
    return Choice(micro, every, memory, there, fits, (*notes, *_uncounted(needs)))


def _worth_trying(needs: Needs, sizes: Sequence[int], every: int, budget: float) -> Sequence[int]:
    """The sizes, most rows first; the least alone where not even that fits, for a step of more rows takes no less."""
    if len(sizes) < 2 or needs.estimate(sizes[0], every).peak_bytes <= budget:
        return sizes
    return sizes[1:] if needs.estimate(sizes[-1], every).peak_bytes <= budget else sizes[-1:]


def _uncounted(needs: Needs) -> tuple[str, ...]:
    return tuple(f"memory of a step is not known, weights alone are counted: {text}" for text in needs.failures[:1])


def _settings(needs: Needs, training: TrainingConfig, device: str) -> Iterator[tuple[int, list[int]]]:
    """Recomputation with sizes of a micro-batch, fastest first: fewer rows at once cost little, recomputing a third."""
    rows = training.micro_batch_size
    # of several processes each has rows of every batch
    most = -(-training.batch_size // training.processes)
    sizes = [rows if rows != "auto" else max(1, min(most, MICRO_TOKENS[device] // needs.longest))]
    while rows == "auto" and sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    every = training.gradient_checkpointing
    for recomputed in (0, 1) if every == "auto" else (int(every),):
        yield recomputed, sizes


def _notes(training: TrainingConfig, micro: int, every: int, memory: MemoryEstimate, most: int) -> tuple[str, ...]:
    found = []
    fits = f"about {size_text(memory.peak_bytes)}"
    if training.micro_batch_size == "auto":
        why = "as many rows as are faster together" if micro == most else f"more do not fit ({fits})"
        found.append(f"micro_batch_size {micro}: {why}")
    if training.gradient_checkpointing == "auto":
        why = "it does not fit without" if every else "it fits without"
        found.append(f"gradient_checkpointing {'true' if every else 'false'}: {why} ({fits})")
    return tuple(found)


def remedies(needs: Needs, choice: Choice) -> tuple[str, ...]:
    """At most three changes that would each make the run fit, the cheapest first; where none would, what it takes."""
    budget = choice.budget_bytes
    assert budget is not None, "asked for only where there is a limit"
    stored = needs.stored.base_bytes + needs.stored.adapter_bytes + needs.stored.optimizer_bytes
    found: list[str] = []
    for text, rows, micro, every in _changes(needs, choice) if stored < budget else ():
        if (needs if rows is needs.train else replace(needs, train=rows, counted={})).estimate(
            micro, every
        ).peak_bytes <= budget:
            found.append(text)
        if len(found) == MOST_REMEDIES:
            break
    return tuple(found) or (
        f"a smaller base: the weights of this one alone take {size_text(needs.stored.base_bytes)}",
        "a device with more memory",
    )


def _changes(needs: Needs, choice: Choice) -> Iterator[tuple[str, Sequence[EncodedRow], int, int]]:
    """Changes by what they cost, with the rows and settings that they mean."""
    micro, every, rows = choice.micro_batch_size, choice.checkpoint_every, needs.train
    one, recomputed = "training.micro_batch_size: 1", "training.gradient_checkpointing: true"
    if micro > 1:
        yield one, rows, 1, every
    if every != 1:
        yield recomputed, rows, micro, 1
    if micro > 1 and every != 1:
        yield f"{one} with {recomputed}", rows, 1, 1
    for length in (needs.longest // 2, needs.longest // 4, needs.longest // 8):
        if length >= _SHORTEST:
            yield f"data.max_length: {length} with {one} and {recomputed}", [_cut(rows[0], length)], 1, 1


def _cut(row: EncodedRow, length: int) -> EncodedRow:
    return replace(
        row, input_ids=row.input_ids[:length], weights=np.ones(length, dtype=np.float32), parts=row.parts[:length]
    )
