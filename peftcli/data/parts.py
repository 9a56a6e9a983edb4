"""Numbers that say which part of its row a token belongs to: its text, its type, and whether the tokenizer framed it.

number = type + 4 * text + 8 * frame        type: what BERT calls the token type, 0 to 3; text: 0 or 1
"""

from __future__ import annotations

import numpy as np

_TEXT = 4
_FRAME = 8


def part(*, text: int, type: int = 0, frame: bool = False) -> int:
    """The number of a part."""
    return type + _TEXT * text + _FRAME * frame


def types(parts: np.ndarray) -> np.ndarray:
    """The token type of each token."""
    found: np.ndarray = parts % _TEXT
    return found


def texts(parts: np.ndarray) -> np.ndarray:
    """The text of each token: 0, or 1 for the second."""
    found: np.ndarray = parts // _TEXT % 2
    return found


def is_frame(parts: np.ndarray) -> np.ndarray:
    """Whether each token is one that the tokenizer puts around texts."""
    found: np.ndarray = parts // _FRAME > 0
    return found


def keep_texts(parts: np.ndarray, weights: np.ndarray, max_length: int, side: str) -> np.ndarray:
    """Positions that stay of a row that is too long: its frame, and of the texts what fits.

    Tokens go one by one from the longest text, one that is trained last of all; each text keeps one token at least.
    """
    body = ~is_frame(parts)
    places = [np.flatnonzero(body & (texts(parts) == number)) for number in (0, 1)]
    sizes = [len(each) for each in places]
    trained = [bool(weights[each].any()) for each in places]
    for _ in range(len(parts) - max_length):
        longest = max((0, 1), key=lambda text: (sizes[text] > 1, not trained[text], sizes[text]))
        sizes[longest] -= sizes[longest] > 1
    kept = [
        each[len(each) - size :] if side == "left" else each[:size] for each, size in zip(places, sizes, strict=True)
    ]
    return np.sort(np.concatenate([np.flatnonzero(~body), *kept]))
