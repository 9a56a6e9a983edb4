"""Rows longer than `max_length`: joined and cut, cut on a side, split, dropped or refused, with every loss counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from peftcli.data.config import Truncation
from peftcli.data.parts import texts
from peftcli.data.store import RowIndex, TokenColumns, count_trained, gather

MAX_DROPPED = 0.05
"""The share of rows that truncation may take before the run is stopped."""
TOO_LONG = "longer than max_length"
"""Why a row was dropped, as facts and reports count it."""
NO_TRAINED = "no trained token"
EMPTIED = "no trained token left by truncation"
"""Why a row was dropped, as facts and reports count it: it had trained tokens, all of them cut off."""


Keep = Callable[[np.ndarray, np.ndarray, int, str], np.ndarray]
"""Parts and weights of a row, the most tokens, the side that is cut -> positions that stay, ascending."""


@dataclass
class Cut:
    """Rows that fit. `columns` may have gained one; `dropped`: reason -> rows; losses in tokens.

    Positions in the rows given: `too_long`; `unlearnt` (never had a trained token); `shortened` (lost some).
    """

    columns: list[TokenColumns]
    index: RowIndex
    rows_kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    tokens_lost: int = 0
    trained_lost: int = 0
    too_long: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    unlearnt: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    shortened: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


def cut_rows(
    columns: list[TokenColumns],
    index: RowIndex,
    policy: Truncation,
    max_length: int,
    *,
    joins: bool,
    begin: int | None,
    keep: Keep | None = None,
    alternatives: Sequence[int] = (),
    apart: bool = False,
) -> Cut:
    """Applies the policy to the rows of one source. For `error` and a too large `drop` see `too_long` and decide.

    `begin`: id of the token that begins a text (BOS), which `left` keeps in front; None: the tokenizer has none.
    `keep`: how rows of several parts are shortened on a side; None: as one run. `alternatives`: parts of which a model
    reads one at a time. `apart`: every text of a row is read by itself.
    """
    # documents are joined only where cutting is wanted: the other policies are about single rows
    if joins and policy in ("auto", "split"):
        return _joined(columns, index, max_length)
    trained = count_trained(columns, index)
    long = read_lengths(columns, index, alternatives, apart=apart) > max_length
    cut = Cut(columns, index, len(index.length), too_long=np.flatnonzero(long))
    # counted before the cut, for the losses are a difference
    before = int(index.length.sum()), int(trained.sum())
    if keep is not None and policy in ("left", "right"):
        cut.columns, cut.index = _keep_parts(columns, index, np.flatnonzero(long), max_length, policy, keep)
    elif policy == "left":
        cut.columns, cut.index = _keep_end(columns, index, max_length, begin)
    elif policy == "right":
        cut.index = _with_length(index, index.start, np.minimum(index.length, max_length))
    elif policy == "split":
        return _split(cut, trained, max_length)
    else:
        cut.index = index.take(np.flatnonzero(~long))
        if long.any():
            cut.dropped[TOO_LONG] = int(long.sum())
    kept_trained = count_trained(cut.columns, cut.index)
    cut.tokens_lost = before[0] - int(cut.index.length.sum())
    cut.trained_lost = before[1] - int(kept_trained.sum())
    if policy in ("left", "right"):
        cut.shortened = np.flatnonzero(kept_trained < trained)
        emptied = int(((kept_trained == 0) & (trained > 0)).sum())
        if emptied:
            cut.dropped[EMPTIED] = emptied
    return _without_unlearnt(cut, trained)


def read_lengths(
    columns: Sequence[TokenColumns], index: RowIndex, alternatives: Sequence[int], *, apart: bool = False
) -> np.ndarray:
    """Tokens of the longest reading of each row, (rows,): all of a row, but one only of parts that are alternatives;
    `apart`: of its longest text."""
    if apart:
        return text_lengths(columns, index)
    found: np.ndarray = index.length.astype(np.int64)
    if not alternatives:
        return found
    counts = np.zeros((len(alternatives), len(found)), dtype=np.int64)
    for number, column in enumerate(columns):
        rows = np.flatnonzero(index.column == number)
        start, end = index.start[rows], index.start[rows] + index.length[rows]
        for place, part in enumerate(alternatives):
            before = np.concatenate([[0], np.cumsum(np.asarray(column.parts) == part)])
            if rows.size:
                counts[place, rows] = before[end] - before[start]
    longest: np.ndarray = found - counts.sum(axis=0) + counts.max(axis=0)
    return longest


def _without_unlearnt(cut: Cut, trained: np.ndarray) -> Cut:
    """Leaves out rows that carry no loss. `trained`: targets of each row before the cut."""
    # rows that never had a trained token are told from those that lost theirs
    cut.unlearnt = np.flatnonzero(trained == 0)
    keep = count_trained(cut.columns, cut.index) > 0
    if not keep.all():
        cut.tokens_lost += int(cut.index.length[~keep].sum())
        never = int((~keep).sum()) - cut.dropped.get(EMPTIED, 0)
        if never:
            cut.dropped[NO_TRAINED] = never
        cut.index = cut.index.take(np.flatnonzero(keep))
    cut.rows_kept -= sum(cut.dropped.values())
    return cut


def _joined(columns: list[TokenColumns], index: RowIndex, max_length: int) -> Cut:
    """All documents one after the other, cut into rows; the last one may be shorter."""
    flat = gather(columns, index)
    total = len(flat.tokens)
    starts = np.arange(0, total, max_length)
    lengths = np.minimum(max_length, total - starts)
    lost = 0
    if len(lengths) > 1 and lengths[-1] < 2:
        # a row of one token has no target
        lost, starts, lengths = int(lengths[-1]), starts[:-1], lengths[:-1]
    # the document that each row begins in, for its place in messages
    document = np.searchsorted(np.cumsum(index.length), starts, side="right")
    blocks = RowIndex(
        np.full(len(starts), len(columns), dtype=np.int32),
        starts,
        lengths,
        index.source[document],
        index.file[document],
        index.line[document],
    )
    return Cut([*columns, flat], blocks, len(index.length), tokens_lost=lost, trained_lost=lost)


def text_lengths(columns: Sequence[TokenColumns], index: RowIndex) -> np.ndarray:
    """Tokens of the longest text of each row, (rows,)."""
    flat = gather(columns, index)
    # texts stand one after the other: a text begins with its row, or where the number of the text changes
    row = np.repeat(np.arange(len(index.length)), index.length)
    text = texts(flat.parts)
    begins = np.flatnonzero(np.diff(row, prepend=-1) | np.diff(text, prepend=-1))
    sizes = np.diff(begins, append=len(row))
    found = np.zeros(len(index.length), dtype=np.int64)
    np.maximum.at(found, row[begins], sizes)
    return found


def _with_length(index: RowIndex, start: np.ndarray, length: np.ndarray) -> RowIndex:
    return replace(index, start=start, length=length)


def _keep_parts(
    columns: list[TokenColumns], index: RowIndex, long: np.ndarray, max_length: int, side: str, keep: Keep
) -> tuple[list[TokenColumns], RowIndex]:
    """Long rows shortened part by part. `long`: their places in the index."""
    if not long.size:
        return columns, index
    flat = gather(columns, index.take(long))
    ends = np.cumsum(index.length[long])
    positions = []
    for start, end in zip(ends - index.length[long], ends, strict=True):
        positions.append(start + keep(flat.parts[start:end], flat.weights[start:end], max_length, side))
    kept = np.concatenate(positions)
    shortened = replace(flat, tokens=flat.tokens[kept], weights=flat.weights[kept], parts=flat.parts[kept])
    column, start, length = index.column.copy(), index.start.copy(), index.length.copy()
    sizes = np.array([len(each) for each in positions])
    column[long], start[long], length[long] = len(columns), np.cumsum(sizes) - sizes, sizes
    return [*columns, shortened], replace(index, column=column, start=start, length=length)


def _keep_end(
    columns: list[TokenColumns], index: RowIndex, max_length: int, begin: int | None
) -> tuple[list[TokenColumns], RowIndex]:
    """Long rows keep their end, and the token in front where it is one that begins a text."""
    long = np.flatnonzero(index.length > max_length)
    if not long.size:
        return columns, index
    shortened = index.take(long)
    # as a number, 0 or 1: how many tokens stand in front
    kept = np.array([_starts_with(columns, shortened, row, begin) for row in range(len(long))], dtype=np.int64)
    head = _with_length(shortened, shortened.start, kept)
    tail_length = max_length - kept
    tail = _with_length(shortened, shortened.start + shortened.length - tail_length, tail_length)
    # head and tail of each row by turns
    # head and tail as rows of their own, for `gather` to put one after the other
    both = RowIndex.concatenate([head, tail]).take(np.arange(2 * len(long)).reshape(2, -1).T.ravel())
    flat = gather(columns, both)
    column, start, length = index.column.copy(), index.start.copy(), index.length.copy()
    column[long], start[long], length[long] = len(columns), np.arange(len(long)) * max_length, max_length
    return [*columns, flat], replace(index, column=column, start=start, length=length)


def _starts_with(columns: list[TokenColumns], index: RowIndex, row: int, token: int | None) -> bool:
    return token is not None and int(columns[int(index.column[row])].tokens[int(index.start[row])]) == token


def _split(cut: Cut, trained: np.ndarray, max_length: int) -> Cut:
    """Each long row as windows of at most `max_length`, one after the other; windows without loss are left out."""
    index = cut.index
    # rounded up; a row without tokens is still one window
    windows = np.maximum(-(-index.length // max_length), 1)
    row = np.repeat(np.arange(len(windows)), windows)
    number = np.arange(int(windows.sum())) - np.repeat(np.cumsum(windows) - windows, windows)
    taken = index.take(row)
    start = taken.start + number * max_length
    pieces = _with_length(taken, start, np.minimum(max_length, taken.length - number * max_length))
    kept_trained = count_trained(cut.columns, pieces)
    # a window without loss trains nothing; the row's other windows stay
    cut.index = pieces.take(np.flatnonzero(kept_trained > 0))
    cut.tokens_lost = int(index.length.sum()) - int(cut.index.length.sum())
    cut.trained_lost = int(trained.sum()) - int(kept_trained.sum())
    cut.unlearnt = np.flatnonzero(trained == 0)
    if cut.unlearnt.size:
        cut.dropped[NO_TRAINED] = len(cut.unlearnt)
    cut.rows_kept = len(trained) - len(cut.unlearnt)
    return cut
