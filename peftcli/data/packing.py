"""Short rows put one after the other into sequences: which rows share one, and how much padding is left. Free of torch.

A pack is a list of places in a batch; rows, not packs, are what a batch counts. Everything here is a pure function of
lengths, so a resumed run packs as the uninterrupted one does.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

Pack = list[int]
"""Places of the rows of one sequence, in their order."""

MORE_PACKS = 8
"""How many packs more than needed are tried: more of them may be of more even length, which pads less."""


def best_fit(lengths: Sequence[int], capacity: int) -> list[Pack]:
    """Packs of at most `capacity` tokens: each row, longest first, goes where the least room is left after it.

    Best-fit decreasing; of equal rooms the earliest pack is taken, so the outcome depends on the lengths alone.
    """
    packs: list[Pack] = []
    rooms: list[tuple[int, int]] = []  # (room left, number of the pack), sorted
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        length = lengths[place]
        assert length <= capacity, f"a row of {length} tokens in packs of {capacity}"
        # room of at least `length`: -1 comes before every number, so that an equal room is found
        found = bisect_left(rooms, (length, -1))
        if found == len(rooms):
            packs.append([])
            room, number = capacity, len(packs) - 1
        else:
            room, number = rooms.pop(found)
        packs[number].append(place)
        insort(rooms, (room - length, number))
    return packs


def forward_passes(lengths: Sequence[int], capacity: int, packs_per_pass: int) -> list[list[Pack]]:
    """The packs of a batch, by forward pass: at most `packs_per_pass` sequences of at most `capacity` tokens in each.

    Where one pass holds the whole batch, the packs are made as even as the rows allow, since each is padded to the longest.
    """
    packs = best_fit(lengths, capacity)
    if len(packs) <= packs_per_pass:
        return [_even(lengths, capacity, len(packs), packs_per_pass)]
    # of like fill beside each other, the fullest first: out of memory shows up at once
    packs.sort(key=lambda pack: -_fill(lengths, pack))
    return [packs[start : start + packs_per_pass] for start in range(0, len(packs), packs_per_pass)]


def _even(lengths: Sequence[int], capacity: int, needed: int, allowed: int) -> list[Pack]:
    """The packs with the fewest padded cells; of equal ones the shorter, whose attention costs less."""
    counts = {*range(needed, min(needed + MORE_PACKS, allowed, len(lengths)) + 1)}
    if len(lengths) <= allowed:
        counts.add(len(lengths))
    tried = [_at_most(lengths, capacity, count) for count in sorted(counts)]
    return min(tried, key=lambda packs: (num_cells(lengths, [packs]), -len(packs)))


def _at_most(lengths: Sequence[int], capacity: int, count: int) -> list[Pack]:
    """So many packs or fewer, the longest about as short as it can be."""
    # no pack is shorter than the longest row, nor than an even share
    room = max(max(lengths), -(-sum(lengths) // count))
    while True:
        packs = best_fit(lengths, min(room, capacity))
        if len(packs) <= count or room >= capacity:
            return packs
        # a 64th more each time: a few tries, and little beyond the least that fits
        room += max(1, room // 64)


def _fill(lengths: Sequence[int], pack: Pack) -> int:
    return sum(lengths[place] for place in pack)


def num_cells(lengths: Sequence[int], passes: Sequence[Sequence[Pack]]) -> int:
    """Tokens and padding together of a batch in these passes."""
    return sum(len(packs) * max(_fill(lengths, pack) for pack in packs) for packs in passes)


def unpacked_passes(num_rows: int, rows_per_pass: int) -> list[list[Pack]]:
    """Each row a sequence of its own."""
    return [
        [[place] for place in range(start, min(start + rows_per_pass, num_rows))]
        for start in range(0, num_rows, rows_per_pass)
    ]


def padding_share(batches: Iterable[Sequence[int]], per_pass: int, capacity: int | None) -> float:
    """Share of padding in all cells of these batches of lengths; `capacity`: packed, None: each row by itself."""
    tokens = cells = 0
    for batch in batches:
        lengths = sorted(batch, reverse=True)  # as a step has them
        passes = (
            unpacked_passes(len(lengths), per_pass) if capacity is None else forward_passes(lengths, capacity, per_pass)
        )
        tokens += sum(lengths)
        cells += num_cells(lengths, passes)
    return 1.0 - tokens / cells if cells else 0.0
