"""One optimizer step's forward and backward passes: rows in, gradients and the loss out, however the batch is cut."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from peftcli.errors import DataError
from peftcli.kernels.active import next_step
from peftcli.models.modes import evaluating
from peftcli.tasks.base import Batch, LossSum, TrainingRow
from peftcli.training.agreement import taken
from peftcli.training.input_gradients import carry_through_inputs
from peftcli.training.interfaces import parts_alone
from peftcli.training.seeding import seed_forward
from peftcli.training.setup import FitSetup
from peftcli.training.world import World

KEPT_NUMBERS = 1 << 28
"""Gradients that a process keeps part by part, 1 GiB of them: enough for 256 million trained numbers in one part."""


@dataclass(frozen=True)
class OptimizerBatch:
    """The rows of one optimizer step, longest first, with their tokens counted on the CPU."""

    indices: tuple[int, ...]
    rows: tuple[TrainingRow, ...]
    tokens: int
    targets: tuple[int, ...]
    """Targets of each row that carry loss."""

    @property
    def trained_tokens(self) -> int:
        """Tokens that carry loss, of all its micro-batches."""
        return sum(self.targets)

    def digest(self) -> str:
        """12 hex digits of every token, weight, part and label in its place: equal exactly when a step sees the same
        data."""
        found = hashlib.blake2b(digest_size=6)
        for row in self.rows:
            found.update(len(row.input_ids).to_bytes(8, "little"))
            found.update(np.asarray(row.input_ids, dtype="<i8").tobytes())
            found.update(np.asarray(row.weights, dtype="<f4").tobytes())
            found.update(np.asarray(row.parts, dtype="<i4").tobytes())
            found.update(repr(row.labels).encode() if row.labels else b"")
        return found.hexdigest()

    def first(self, num_rows: int) -> OptimizerBatch:
        """The longest rows that carry loss."""
        chosen = [place for place, count in enumerate(self.targets) if count][:num_rows]
        rows = tuple(self.rows[place] for place in chosen)
        indices = tuple(self.indices[place] for place in chosen)
        targets = tuple(self.targets[place] for place in chosen)
        return OptimizerBatch(indices, rows, _tokens(rows), targets)


class Passes(NamedTuple):
    """What the passes of one process over a batch gave, beside the gradients."""

    loss: Tensor
    """A device scalar: this process's share of the loss of the whole batch."""
    last: Batch
    """The last micro-batch of the whole batch, on the CPU."""
    number: int
    """The place of the last micro-batch that was computed here; -1 where there was none."""
    shares: tuple[Tensor, ...] = ()
    """Of several processes: what each micro-batch that was computed here adds, as `taken` gives it."""
    owners: tuple[int, ...] = ()
    """Of several processes: who has each share of the whole batch, in the order in which they are added."""
    facts: Mapping[str, Tensor] = MappingProxyType({})
    """Name -> this process's share in a number of the whole batch, scalars on the device."""


def _tokens(rows: Sequence[TrainingRow]) -> int:
    return sum(len(row.input_ids) for row in rows)


def read_batch(setup: FitSetup, step: int) -> OptimizerBatch:
    """The batch of a step (counted from 1): a pure function of the order, so the step number is the data cursor."""
    epoch, index = divmod(step - 1, setup.order.steps_per_epoch)
    return read_rows(setup, [int(row) for row in setup.order.batch(epoch, index)])


def read_rows(setup: FitSetup, indices: Sequence[int]) -> OptimizerBatch:
    """Reads rows and sorts them by length, so that a micro-batch pads little and the largest comes first."""
    # sorting is stable, so equal lengths keep the order of the draw and the batch repeats bit for bit
    pairs = sorted(zip(indices, setup.get_rows(indices), strict=True), key=lambda pair: -len(pair[1].input_ids))
    rows = tuple(row for _, row in pairs)
    return OptimizerBatch(
        indices=tuple(index for index, _ in pairs),
        rows=rows,
        tokens=_tokens(rows),
        targets=tuple(setup.targets_in(row) for row in rows),
    )


def _parts(setup: FitSetup, rows: Sequence[TrainingRow], micro_batch_size: int) -> Sequence[Batch]:
    """The batches of the forward passes, on the CPU."""
    if setup.pack is not None:
        return setup.pack(rows, micro_batch_size)
    return [setup.collate(rows[start : start + micro_batch_size]) for start in range(0, len(rows), micro_batch_size)]


def owner(part: int, processes: int) -> int:
    """The process that computes a part of a batch: to and fro, since parts are sorted by length, longest first."""
    turn, place = divmod(part, processes)
    return place if turn % 2 == 0 else processes - 1 - place


def accumulate(
    setup: FitSetup,
    batch: OptimizerBatch,
    *,
    step: int,
    micro_batch_size: int,
    precision: AbstractContextManager[Any],
    everything: bool = False,
) -> Passes:
    """Adds the gradients of a batch.

    The loss is the sum over micro-batches divided by the total weight of the batch: no mean of means. Of several
    processes each takes some of the parts, unless it is to take `everything`, and keeps what each of them adds: added in
    the order of the parts they are what one process has, bit for bit. A part is seeded by its place in the batch: what
    is drawn for it does not depend on who computes it.
    """
    parts = _parts(setup, batch.rows, micro_batch_size)
    # weighed before the first forward pass: each micro-batch is divided by the weight of all of them
    weights = [setup.weigh(part) for part in parts]
    total_weight = _total_weight(weights, batch, step)
    parts = _told(setup, parts, precision)
    next_step()
    owners = () if everything or setup.world.size == 1 else _owners(weights, setup.world.size)
    added = _Sum(setup, owners)
    forward = _Forward(setup, step, precision)
    if setup.share is not None and len(parts) > 1:
        parts = setup.share(setup.model, parts, forward.seeded)
    for number, counts in _passes(weights, owners, setup.world):
        with contextlib.nullcontext() if counts else _without_effect(added.trained):
            computed = forward.loss(number, parts[number])
            assert math.isclose(computed.weight, weights[number], rel_tol=1e-4), "task and loop weigh losses alike"
            share = computed.total / total_weight
            extra = setup.adapter.extra_loss()
            # over the micro-batches the extra term adds up to itself once
            extra = None if extra is None else extra * (weights[number] / total_weight)
            setup.accelerator.backward(share if extra is None else share + extra)
        if counts:
            added.add(number, share, computed.facts)
    return added.passes(parts[-1])


def _total_weight(weights: Sequence[float], batch: OptimizerBatch, step: int) -> float:
    # rounded once, however many parts there are
    total = math.fsum(weights)
    if not total > 0.0:
        raise DataError(
            f"the batch of step {step} has no token that carries loss",
            where=f"rows {', '.join(map(str, batch.indices[:8]))}",
            fix="check train_on, max_length and truncation; `peft data` shows the mask",
        )
    return total


@dataclass(frozen=True)
class _Forward:
    """The forward passes of one step, each under draws of its own."""

    setup: FitSetup
    step: int
    precision: AbstractContextManager[Any]

    def seeded(self, number: int, forward: Callable[[], Any]) -> Any:
        """What a pass of the part with this number gives."""
        seed_forward(self.setup.seed, self.step, number, self.setup.accelerator.device)
        with self.precision:
            return forward()

    def loss(self, number: int, part: Batch) -> LossSum:
        """The part's loss, with a graph to go backward through."""
        while True:
            # taken again from its start, a pass has the same draws
            computed: LossSum = self.seeded(number, lambda: self.setup.compute_loss(self.setup.model, part))
            if computed.total.requires_grad:
                return computed
            carry_through_inputs(self.setup.model)  # an error the second time


class _Sum:
    """What the passes that count add up to in this process.

    `owners`: who has each part of the whole batch that carries loss; none where this process takes all of them.
    """

    def __init__(self, setup: FitSetup, owners: Sequence[int]) -> None:
        self.owners = tuple(owners)
        self.trained = tuple(setup.adapter.trainable_parameters().values()) if owners else ()
        self.one_by_one = _can_be_kept(owners, self.trained, setup.world.size)
        self.loss = torch.zeros((), device=setup.accelerator.device)
        self.facts: dict[str, Tensor] = {}
        self.shares: list[Tensor] = []
        self.number = -1

    def add(self, number: int, share: Tensor, facts: Mapping[str, Tensor]) -> None:
        """Adds a part whose gradients are in place; kept one by one, they are taken from there."""
        self.number = number
        self.loss += share.detach()
        for name, value in facts.items():
            self.facts[name] = self.facts[name] + value if name in self.facts else value
        if self.one_by_one:
            self.shares.append(taken(share, self.trained))

    def passes(self, last: Batch) -> Passes:
        """All of it, once the last pass is done."""
        owners = self.owners
        if owners and not self.one_by_one:
            # one share of each process that had a part, in the order of the processes
            owners = tuple(sorted(set(owners)))
            self.shares = [taken(self.loss, self.trained)] if self.number >= 0 else []
        return Passes(self.loss, last, self.number, tuple(self.shares), owners, self.facts)


@contextlib.contextmanager
def _without_effect(trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """A pass taken for nothing: the gradients are afterwards what they were before."""
    held = [parameter.grad for parameter in trained]
    for parameter in trained:
        # put aside, and not only remembered: a backward pass adds to the tensor that it finds, in place
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(trained, held, strict=True):
            parameter.grad = gradient


def _told(setup: FitSetup, parts: Sequence[Batch], precision: AbstractContextManager[Any]) -> Sequence[Batch]:
    """The parts, told of each other. Dropout is off meanwhile: what a loss measures is the model and not a draw.

    Of several processes each asks for itself: the answer is the same, and a meeting would cost more than it saves.
    """
    if setup.whole_batch is parts_alone:
        return parts
    setup.adapter.set_training(False)
    try:
        with evaluating(setup.model), precision:
            return setup.whole_batch(setup.model, parts)
    finally:
        setup.adapter.set_training(True)


def _passes(weights: Sequence[float], owners: Sequence[int], world: World) -> Iterator[tuple[int, bool]]:
    """Numbers of the parts that this process computes, and whether they count.

    `owners`: of the parts that carry loss; none where it takes all of them. Where all must keep in step, those with fewer
    parts compute the last one once more, for nothing.
    """
    # others have nothing to learn from, and would be 0/0 in a loss that means by itself
    numbers = [number for number, weight in enumerate(weights) if weight != 0.0]
    mine = [number for number in numbers if not owners or owner(number, world.size) == world.rank]
    yield from ((number, True) for number in mine)
    if owners and world.in_step:
        most = max(owners.count(rank) for rank in range(world.size))
        yield from ((numbers[-1], False) for _ in range(most - len(mine)))


def _owners(weights: Sequence[float], processes: int) -> tuple[int, ...]:
    return tuple(owner(number, processes) for number, weight in enumerate(weights) if weight != 0.0)


def _can_be_kept(owners: Sequence[int], trained: Sequence[nn.Parameter], processes: int) -> bool:
    """Whether a process has room for what each of its parts adds; else it adds its own up first."""
    each = -(-len(owners) // processes)
    return bool(owners) and each * sum(parameter.numel() for parameter in trained) <= KEPT_NUMBERS
