"""Numbers that say which part of its row a token belongs to: its text, its type, and whether the tokenizer framed it.

number = type + 4 * (text % 2) + 8 * frame + 16 * (text // 2)        type: what BERT calls the token type, 0 to 3
"""

from __future__ import annotations

import numpy as np

_TEXT = 4
_FRAME = 8
_MORE = 16
"""Texts beyond the first two."""


def part(*, text: int, type: int = 0, frame: bool = False) -> int:
    """The number of a part."""
    return type + _TEXT * (text % 2) + _FRAME * frame + _MORE * (text // 2)


def types(parts: np.ndarray) -> np.ndarray:
    """The token type of each token."""
    found: np.ndarray = parts % _TEXT
    return found


def texts(parts: np.ndarray) -> np.ndarray:
    """The text of each token, counted from 0."""
    found: np.ndarray = parts // _TEXT % 2 + parts // _MORE * 2
    return found


def is_frame(parts: np.ndarray) -> np.ndarray:
    """Whether each token is one that the tokenizer puts around texts."""
    found: np.ndarray = parts // _FRAME % 2 > 0
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


def keep_each_text(parts: np.ndarray, weights: np.ndarray, max_length: int, side: str) -> np.ndarray:
    """Positions that stay of a row whose texts are read one by one: of each its frame and what fits beside it."""
    body, number = ~is_frame(parts), texts(parts)
    kept = []
    for text in np.unique(number):
        own = np.flatnonzero(number == text)
        inner = own[body[own]]
        room = max(1, max_length - (len(own) - len(inner)))
        kept.append(own[~body[own]])
        kept.append(inner[-room:] if side == "left" else inner[:room])
    return np.sort(np.concatenate(kept))
