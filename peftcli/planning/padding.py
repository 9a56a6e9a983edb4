"""How much of a run's forward passes will be padding, as it is packed or not, and why it may not be packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from peftcli.adapters.base import Adapter
from peftcli.data.config import DataConfig
from peftcli.data.order import BatchOrder
from peftcli.data.packing import padding_share
from peftcli.data.stream_order import StreamOrder
from peftcli.errors import RecipeError
from peftcli.tasks.base import Task

SAMPLED_BATCHES = 200
"""Batches of the first epoch, evenly spread, that shares of padding are counted on."""


@dataclass(frozen=True)
class Padding:
    """Shares of padding in the tokens of all forward passes. `packed`: None where rows are not packed."""

    unpacked: float
    packed: float | None


def require_packable(config: DataConfig, task: Task, adapter: Adapter) -> None:
    """Raises `RecipeError` where packing is asked for and task or method cannot have it."""
    if not config.packing:
        return
    why = None if task.packs_rows else "its rows are not one run of tokens each"
    who = task.name
    if why is None:
        who, why = adapter.config.name, adapter.packing_fault()
    if why is not None:
        raise RecipeError(
            f"{who} does not go with packed rows: {why}",
            where="data.packing",
            fix="data.packing: false (rows of like length are batched together then)",
        )


def pack_tokens(config: DataConfig, lengths: np.ndarray) -> int:
    """Tokens that a pack holds at most: the longest row's, so that packing never needs more memory than the rows do."""
    return config.max_length if config.streaming else int(np.asarray(lengths).max())


def idle_packing(config: DataConfig, lengths: np.ndarray) -> list[str]:
    """A warning where packing is asked for and no two rows fit into one sequence, as of text that is cut to one length."""
    if not config.packing or config.streaming:
        return []
    capacity, shortest = pack_tokens(config, lengths), np.sort(np.asarray(lengths))[:2]
    if len(shortest) == 2 and int(shortest.sum()) <= capacity:
        return []
    return [f"data.packing has no effect: no two rows fit into a sequence of {capacity} tokens, the longest row's"]


def padding_of(
    config: DataConfig, lengths: np.ndarray, order: BatchOrder | StreamOrder, micro_batch_size: int
) -> Padding | None:
    """The shares of a run; None for a stream, whose rows are not known beforehand."""
    if isinstance(order, StreamOrder):
        return None
    batches = list(_batches(np.asarray(lengths), order))
    return Padding(
        unpacked=padding_share(batches, micro_batch_size, None),
        packed=padding_share(batches, micro_batch_size, pack_tokens(config, lengths)) if config.packing else None,
    )


def _batches(lengths: np.ndarray, order: BatchOrder) -> Iterator[Sequence[int]]:
    total = order.steps_per_epoch
    for index in np.unique(np.linspace(0, total - 1, min(total, SAMPLED_BATCHES)).astype(int)):
        yield [int(length) for length in lengths[order.batch(0, int(index))]]
