"""Special tokens in rendered text: where a stretch may be cut, and what ends an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence


class Borders:
    """`tokens`: the texts of all added tokens, none of which may be cut; `stops`: of those that may end an answer."""

    def __init__(self, tokens: Sequence[str], stops: Sequence[str]) -> None:
        self._token = _any_of(tokens)
        self._stop = _any_of(stops)
        self._stop_at_end = re.compile(rf"(?:{self._stop.pattern})\s*\Z") if self._stop else None

    def shared(self, one: str, other: str) -> str:
        """What two texts begin with alike, without a part of a token at its end."""
        length = _alike(one, other)
        for hit in self._token.finditer(one) if self._token else ():
            if hit.start() < length < hit.end():
                return one[: hit.start()]
        return one[:length]

    def alike_at_end(self, one: str, other: str) -> str:
        """What two texts end with alike, without a part of a token at its beginning."""
        # counted from the ends, so both are read backwards
        at = len(one) - _alike(one[::-1], other[::-1])
        return one[self.behind(one, at) :]

    def behind(self, text: str, at: int) -> int:
        """The position, or the end of the token that lies across it."""
        for hit in self._token.finditer(text) if self._token else ():
            if hit.start() < at < hit.end():
                return hit.end()
        return at

    def tokens_in(self, text: str) -> list[re.Match[str]]:
        """Every added token in a text, as matches in order."""
        return list(self._token.finditer(text)) if self._token else []

    def stops_in(self, text: str) -> list[re.Match[str]]:
        """Every token in a text that may end an answer."""
        return list(self._stop.finditer(text)) if self._stop else []

    def ends_with_stop(self, text: str) -> bool:
        """Whether a text ends with such a token, white space after it aside."""
        return self._stop_at_end is not None and self._stop_at_end.search(text) is not None


def _alike(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    most = min(len(one), len(other))
    # the usual case by one comparison in C
    if one[:most] == other[:most]:
        return most
    return next(at for at in range(most) if one[at] != other[at])


def _any_of(texts: Sequence[str]) -> re.Pattern[str] | None:
    # longest first: `<|end|>` must not win over `<|end|>\n` or `<|endoftext|>`
    longest_first = sorted({text for text in texts if text.strip()}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
