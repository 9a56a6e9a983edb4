"""The order of batches: a pure function of seed, epoch and index, so that resuming needs no state."""

from __future__ import annotations

import numpy as np

WINDOW_BATCHES = 64


def permutation(count: int, *key: int) -> np.ndarray:
    """A permutation of `count` from a Philox stream of its own for `key`.

    Sorted raw words are used, not `Generator.permutation`, whose algorithm numpy may change between versions.
    """
    words = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(np.atleast_1d(words), kind="stable")


class BatchOrder:
    """Batches of rows of similar length: shuffled windows, sorted by length inside, then the batches shuffled.

    Every row appears once an epoch; the last batch of an epoch may be smaller and comes last.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int) -> None:
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch: tuple[int, list[np.ndarray]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the smaller last one among them."""
        # rounded up: the last batch may be smaller
        return -(-len(self._lengths) // self._batch_size)

    def batch(self, epoch: int, index: int) -> np.ndarray:
        """Row numbers of one batch, (rows,) int64. `IndexError` beyond the epoch."""
        if not 0 <= index < self.steps_per_epoch:
            raise IndexError(f"batch {index} of {self.steps_per_epoch}")
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._batches(epoch))
        return self._epoch[1][index]

    def _batches(self, epoch: int) -> list[np.ndarray]:
        size = self._batch_size
        # two streams of draws, 0 for rows and 1 for batches, so that neither shifts when the other's length changes
        rows = permutation(len(self._lengths), self._seed, epoch, 0)
        whole = len(rows) - len(rows) % size
        # the smaller batch is drawn before sorting, so that it is not always the longest rows
        full, rest = rows[:whole], rows[whole:]
        window = size * WINDOW_BATCHES
        cut: list[np.ndarray] = []
        for start in range(0, whole, window):
            part = full[start : start + window]
            # within a window only: sorting the whole epoch would make batches of equal length, always with the same rows
            part = part[np.argsort(self._lengths[part], kind="stable")]
            cut += [part[at : at + size] for at in range(0, len(part), size)]
        shuffled = [cut[number] for number in permutation(len(cut), self._seed, epoch, 1)]
        return [*shuffled, rest] if rest.size else shuffled
