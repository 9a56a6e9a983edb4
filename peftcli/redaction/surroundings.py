"""Values of the environment that are secrets, known by the names of their variables and by the values themselves.

`HF_TOKEN` and `DB_PASSWORD` ask for a secret. `SORT_KEY`, `PRIMARY_KEY` ask for the name of a column as well: there only
a value that somebody's machine made up counts, never words.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping

_SECRETS = frozenset(
    [
        "token",
        "tokens",
        "secret",
        "secrets",
        "password",
        "passwords",
        "passwd",
        "passphrase",
        "pass",
        "pwd",
        "pat",
        "apikey",
        "apikeys",
        "credential",
        "credentials",
    ]
)
_KEYS = frozenset(("key", "keys"))
_OF_SECRET_KEYS = frozenset(
    [
        "access",
        "account",
        "api",
        "app",
        "auth",
        "client",
        "deploy",
        "encryption",
        "license",
        "master",
        "private",
        "secret",
        "service",
        "shared",
        "signing",
        "ssh",
        "storage",
        "subscription",
    ]
)
_NO_SECRETS = frozenset(("PWD", "OLDPWD"))
# shorter values are found in innocent text by chance
_SHORTEST_VALUE = 10
_SHORTEST_MADE = 16
_MADE_CHANGES = 0.35
"""Of the neighbours in a drawn value: those of unlike kind (a capital, a small letter, a digit). Words have few."""

_WORD = r"(?:[A-Za-z][a-z]*|[A-Z]+)\d{0,2}"
_WORDS = re.compile(rf"{_WORD}(?:[-_./: ]+(?:{_WORD}|\d{{1,3}}))*")
_ORDINARY = re.compile(r"[+-]?[\d.]+(?:[eE][+-]?\d+)?|(?:/|~/|\./|\.\./|https?://|[A-Za-z]:\\).*")


def secret_values(*, words: bool, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Values of variables that hold a secret; `words`: also those that could be settings or names of ours as well.

    Numbers, paths and short values are left out: they would blank out innocent text.
    """
    for name, value in environment.items():
        if len(value) >= _SHORTEST_VALUE and _is_secret(name, value) and (words or not _WORDS.fullmatch(value)):
            yield value


def _is_secret(name: str, value: str) -> bool:
    # names are told by their last word, and `..._KEY` by the one before it as well
    last, before = [*name.lower().split("_")[::-1], ""][:2]
    if name in _NO_SECRETS or _ORDINARY.fullmatch(value):
        return False
    if last in _SECRETS or (last in _KEYS and before in _OF_SECRET_KEYS):
        return True
    return last in _KEYS and _is_made(value)


def _is_made(value: str) -> bool:
    """Whether a value was drawn, not thought up: long, of one piece, and changing its kind of character all the time."""
    if len(value) < _SHORTEST_MADE or not re.fullmatch(r"[A-Za-z0-9+/=_-]+", value) or _WORDS.fullmatch(value):
        return False
    # 32 digits of hexadecimal are a key of 128 bits; few of their neighbours need be of unlike kind
    if re.fullmatch(r"[0-9a-f]{32,}", value):
        return True
    kinds = ["A" if c.isupper() else "a" if c.islower() else "0" if c.isdigit() else "" for c in value]
    changes = sum(bool(one and other) and one != other for one, other in itertools.pairwise(kinds))
    return changes >= _MADE_CHANGES * len(value)
