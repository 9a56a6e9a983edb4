"""Credentials: no recipe, log, report or error carries one.

Three signs give one away: the shape of a known kind (`shapes.py`), the name before it (`password=...`), and being the
value of an environment variable whose name asks for a secret (`surroundings.py`).

Only values are masked, never the keys, numbers and settings that are our own: an environment may hold any word.
`redacted` is for free text (rows, messages), `redacted_name` for what may be a name or setting as well, and
`redacted_values` for a whole document.
"""

from __future__ import annotations

import functools
import html
import json
import re
from typing import Any
from urllib.parse import quote

import markupsafe

from peftcli.redaction.shapes import SHAPES, shapes_in
from peftcli.redaction.surroundings import secret_values

REMEDY = "use the environment (HF_TOKEN, WANDB_API_KEY, ...); a recipe is copied into runs and reports"
"""What to do with a credential that was found in a recipe."""
MASK = "***"

_KEY = re.compile(
    # `tokens` alone is a count, or a list of strings, far more often than a secret
    r"^(?!tokens$)(.*_)?(tokens?|secrets?|passwords?|passwd|passphrase|api_?keys?|access_?keys?|account_?keys?|private_?keys?"
    r"|secret_?keys?|credentials?)$"
)
_TOKENIZER_WORDS = re.compile(
    r"(^|_)(pad|eos|bos|unk|cls|sep|mask|stop|end|start|num|max|min|new|add|added|virtual|special|image|trained|total)_tokens?$"
)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_HEADER = re.compile(
    # `Bearer` in a sentence is a word; with a digit in what follows it is a header
    r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)\s+|\bbearer\s+(?=[A-Za-z._~+/=-]*\d))"
    r"[A-Za-z0-9._~+/=-]{12,}"
)
_NAMED = re.compile(
    # eight characters at least: shorter values are words of a sentence ("the key: value")
    r"""(tokens?|secrets?|passwords?|passwd|passphrase|keys?|credentials?)(["']?\s*[=:]\s*["']?)([^\s"',;&\\<>*]{8,})""",
    re.IGNORECASE,
)
_NAME_BEFORE = re.compile(r"[\w-]{0,60}$")


def is_secret_key(key: str) -> bool:
    """Whether a key asks for a secret (`hub_token`, `api-key`), not for a number or word of tokens (`eos_token`)."""
    name = _HUMP.sub("_", key).lower().replace("-", "_")
    return bool(_KEY.search(name)) and not _TOKENIZER_WORDS.search(name)


def holds_secret(text: str, *, words: bool = False) -> bool:
    """Whether a text holds the shape of a known kind of credential, or one of the environment's.

    `words`: also where that is made of words, and the text is no name nor setting.
    """
    return any(True for _ in shapes_in(text)) or any(value in text for value in secret_values(words=words))


def secrets_by_line(text: str, *, named: bool = True) -> list[tuple[int, str]]:
    """(line, kind) of every line of a text with a credential in it; lines count from 1, what it is itself is not told.

    `named`: also what only the name before it gives away, and values of the environment that are made of words.
    """
    found: dict[int, str] = {}
    for value in secret_values(words=named):
        for written in _ways_to_write(value):
            _note(found, text, re.escape(written), "a secret of this environment")
    for shape in SHAPES:
        if shape.may_be_in(text):
            _note(found, text, shape.expression, shape.kind)
    for match in _HEADER.finditer(text):
        found.setdefault(_line_of(text, match), "an authorization header")
    for match in _NAMED.finditer(text) if named else ():
        if _without_named(match) != match[0]:
            found.setdefault(_line_of(text, match), f"a value named {match[1]!r}")
    return sorted(found.items())


def _note(found: dict[int, str], text: str, expression: str | re.Pattern[str], kind: str) -> None:
    for match in re.finditer(expression, text):
        found.setdefault(_line_of(text, match), kind)


def _line_of(text: str, match: re.Match[str]) -> int:
    return text.count("\n", 0, match.start()) + 1


def redacted(text: str) -> str:
    """Free text with every credential replaced by `***`."""
    return _masked(text, words=True)


def redacted_name(text: str) -> str:
    """The same for a path, a name, a setting: what words of the environment say as well is no secret there."""
    return _masked(text, words=False)


def redacted_values(value: Any) -> Any:
    """A document of plain JSON values with every text in it as `redacted_name` has it; keys and numbers as they are."""
    if isinstance(value, str):
        return redacted_name(value)
    if isinstance(value, dict):
        return {key: redacted_values(item) for key, item in value.items()}
    return [redacted_values(item) for item in value] if isinstance(value, (list, tuple)) else value


def redacted_keys(value: dict[str, Any]) -> dict[str, Any]:
    """A dictionary whose keys are names of a user's own, masked; two that read the same then get a number."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        name = shown = redacted_name(key)
        number = 1
        while name in found:
            number += 1
            name = f"{shown} ({number})"
        found[name] = item
    return found


def _masked(text: str, *, words: bool) -> str:
    # longest way first, and whole values of the environment before the shapes, which might mask only a part of one
    for value in secret_values(words=words):
        for written in _ways_to_write(value):
            text = text.replace(written, MASK)
    for shape in SHAPES:
        if shape.may_be_in(text):
            text = shape.expression.sub(MASK, text)
    text = _HEADER.sub(rf"\1{MASK}", text)
    return _NAMED.sub(_without_named, text)


def _without_named(found: re.Match[str]) -> str:
    name, between, value = found.groups()
    before = _NAME_BEFORE.search(found.string, max(0, found.start() - 60), found.start())
    whole = (before[0] if before else "") + name
    # a digit string is a count; brackets and `$` begin a placeholder, a list or a special token
    if not is_secret_key(whole) or value.isdigit() or value.startswith(("<|", "[", "{", "(", "$")):
        return found[0]
    return f"{name}{between}{MASK}"


@functools.lru_cache(maxsize=256)
def _ways_to_write(value: str) -> tuple[str, ...]:
    """A value as it stands in text, JSON, HTML and URLs; longest first."""
    ways = {
        value,
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        html.escape(value),
        # of our reports, which writes quotes otherwise
        str(markupsafe.escape(value)),
        quote(value, ""),
    }
    return tuple(sorted(ways, key=len, reverse=True))
