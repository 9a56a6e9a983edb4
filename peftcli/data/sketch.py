"""A few numbers a row that agree in as many places as two rows have token runs in common (minhash).

Shingles are runs of `SHINGLE` tokens; each is hashed once, and each part of the sketch is the least of the hashes after
another odd multiplication (Broder 1997). A row shorter than a shingle is sketched by its own tokens, whatever lies after it.
"""

from __future__ import annotations

import numpy as np

PARTS = 8
"""Numbers in a sketch. They are compared in four bands of two: rows with 0.9 of their runs in common agree in none of
them once in 770 times (0.19 ** 4)."""
SHINGLE = 5
"""Tokens in a run: shorter ones are in common by chance, longer ones are broken by every changed word."""
_MULTIPLIERS = np.array(
    [0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0xD3A2646D, 0xFD7046C5, 0xB55A4F09], dtype=np.uint32
)
# of the five tokens of a shingle, so that their order counts; the first has weight 1, the sum wraps at 32 bits
_WEIGHTS = np.array([1, 0x01000193, 0x2C1B3C6D, 0x297A2D39, 0x1B873593], dtype=np.uint32)


def sketch(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(rows, PARTS) uint32 for rows that lie one after the other in `tokens`; zeros for rows without tokens."""
    out = np.zeros((len(lengths), PARTS), dtype=np.uint32)
    filled = np.flatnonzero(lengths > 0)
    if not filled.size:
        return out
    runs = _shingles(tokens)
    starts = (np.cumsum(lengths) - lengths)[filled]
    short = lengths[filled] < SHINGLE
    # no other row's runs begin there, so that the place is free for what a short row has instead of one
    runs[starts[short]] = _whole(tokens, starts[short], lengths[filled][short])
    hashes = _mixed(runs)
    # the shingles of a row begin at its first token and end where the last whole one begins
    counts = np.maximum(lengths[filled] - SHINGLE + 1, 1)
    bounds = np.empty(2 * len(filled), dtype=np.int64)
    bounds[0::2], bounds[1::2] = starts, starts + counts
    inside = bounds[:-1] if bounds[-1] >= len(hashes) else bounds
    # reduceat takes a range from each bound to the next: every second one is a row's own, those between lie after its last
    # shingle and are dropped; a last bound at the very end is left out, since reduceat may not begin there
    for part, multiplier in enumerate(_MULTIPLIERS):
        turned = hashes * multiplier
        # the high bits, which the multiplication mixed best, into the low ones that the comparison sees too
        turned ^= turned >> np.uint32(15)
        out[filled, part] = np.minimum.reduceat(turned, inside)[0::2]
    return out


def _shingles(tokens: np.ndarray) -> np.ndarray:
    """A hash of the run that begins at each token, (tokens,) uint32; runs beyond the end are cut."""
    ids = tokens.astype(np.uint32)
    total = ids.copy()
    for at in range(1, SHINGLE):
        total[:-at] += ids[at:] * _WEIGHTS[at]
    return total


def _whole(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """A hash of each row of fewer tokens than a shingle has, (rows,) uint32; one more than the id counts, so that a token
    of number 0 is not as good as none."""
    total = np.zeros(len(starts), dtype=np.uint32)
    for at in range(SHINGLE - 1):
        inside = lengths > at
        total[inside] += (tokens[starts[inside] + at].astype(np.uint32) + np.uint32(1)) * _WEIGHTS[at]
    return total


def _mixed(values: np.ndarray) -> np.ndarray:
    values = values * np.uint32(0x85EBCA6B)
    values ^= values >> np.uint32(13)
    values *= np.uint32(0xC2B2AE35)
    values ^= values >> np.uint32(16)
    return values
