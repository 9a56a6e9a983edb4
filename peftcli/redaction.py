"""Credentials: what they look like, so that no recipe, log, report or error carries one.

Three signs give one away: the shape of a known kind (`hf_...`), the name before it (`password=...`), and being the value
of an environment variable whose name asks for a secret (`WANDB_API_KEY`).
"""

from __future__ import annotations

import functools
import html
import json
import os
import re
from collections.abc import Iterator
from urllib.parse import quote

REMEDY = "use the environment (HF_TOKEN, WANDB_API_KEY, ...); a recipe is copied into runs and reports"
MASK = "***"

_KEY = re.compile(
    r"^(?!tokens$)(.*_)?(tokens?|secrets?|passwords?|passwd|passphrase|api_?keys?|access_?keys?|account_?keys?|private_?keys?"
    r"|secret_?keys?|credentials?)$"
)
_TOKENIZER_WORDS = re.compile(
    r"(^|_)(pad|eos|bos|unk|cls|sep|mask|stop|end|start|num|max|min|new|virtual|special|image|trained|total)_tokens?$"
)
_SHAPES: tuple[tuple[str, str], ...] = (
    ("hf_", r"\bhf_[A-Za-z0-9]{20,}"),
    ("gh", r"\bgh[posur]_[A-Za-z0-9]{20,}"),
    ("github_pat_", r"\bgithub_pat_[A-Za-z0-9_]{20,}"),
    ("glpat-", r"\bglpat-[A-Za-z0-9_-]{20,}"),
    ("sk-", r"\bsk-[A-Za-z0-9_-]{20,}"),
    ("k_", r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    ("AKIA", r"\bAKIA[0-9A-Z]{16}\b"),
    ("ASIA", r"\bASIA[0-9A-Z]{16}\b"),
    ("xox", r"\bxox[abeprs]-[A-Za-z0-9-]{10,}"),
    ("AIza", r"\bAIza[0-9A-Za-z_-]{30,}"),
    ("npm_", r"\bnpm_[A-Za-z0-9]{30,}"),
    ("pypi-", r"\bpypi-[A-Za-z0-9_-]{30,}"),
    ("dckr_pat_", r"\bdckr_pat_[A-Za-z0-9_-]{20,}"),
    ("dapi", r"\bdapi[0-9a-f]{32}\b"),
    ("SG.", r"\bSG\.[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}"),
    ("eyJ", r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    (
        "PRIVATE KEY-----",
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:(?s:.*?)-----END [A-Z ]*PRIVATE KEY-----|[A-Za-z0-9+/=\\\s]*)",
    ),
    ("://", r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
)
"""What must stand in a text at all, which is quick to tell, and the whole shape."""

_HEADER = re.compile(r"(?i)(\bbearer\s+)[A-Za-z0-9._~+/=-]{12,}")
_NAMED = re.compile(
    r"""(tokens?|secrets?|passwords?|passwd|passphrase|keys?|credentials?)(["']?\s*[=:]\s*["']?)([^\s"',;&\\<>*]{8,})""",
    re.IGNORECASE,
)
_NAME_BEFORE = re.compile(r"[\w-]{0,60}$")
_ENVIRONMENT_NAME = re.compile(r"(?i)(token|key|secret|password|passwd|passphrase|credentials?)s?$")
_SHORTEST_VALUE = 10
_ORDINARY_VALUE = re.compile(r"[\d.]+|(?:/|~/|\./|https?://).*", re.IGNORECASE)


def is_secret_key(key: str) -> bool:
    """Whether a key asks for a secret (`hub_token`, `api-key`), not for a number or word of tokens (`eos_token`)."""
    name = key.lower().replace("-", "_")
    return bool(_KEY.search(name)) and not _TOKENIZER_WORDS.search(name)


def holds_secret(text: str) -> bool:
    """Whether a text holds the shape of a known kind of credential, or one of the environment's."""
    return any(mark in text and re.search(shape, text) for mark, shape in _SHAPES) or any(
        value in text for value in _environment_values()
    )


def redacted(text: str) -> str:
    """The text with every credential replaced by `***`; JSON stays JSON."""
    for value in _environment_values():
        for written in _ways_to_write(value):
            text = text.replace(written, MASK)
    for mark, shape in _SHAPES:
        if mark in text:
            text = re.sub(shape, MASK, text)
    text = _HEADER.sub(rf"\1{MASK}", text)
    return _NAMED.sub(_without_named, text)


def _without_named(found: re.Match[str]) -> str:
    name, between, value = found.groups()
    before = _NAME_BEFORE.search(found.string, max(0, found.start() - 60), found.start())
    whole = (before[0] if before else "") + name
    if not is_secret_key(whole) or value.isdigit() or value.startswith(("<|", "[", "{", "(", "$")):
        return found[0]
    return f"{name}{between}{MASK}"


def _environment_values() -> Iterator[str]:
    """Values of variables whose names ask for a secret; short and ordinary ones would blank out innocent text."""
    for name, value in os.environ.items():
        if _ENVIRONMENT_NAME.search(name) and len(value) >= _SHORTEST_VALUE and not _ORDINARY_VALUE.fullmatch(value):
            yield value


@functools.lru_cache(maxsize=256)
def _ways_to_write(value: str) -> tuple[str, ...]:
    """A value as it stands in text, JSON, HTML and URLs; longest first."""
    ways = {
        value,
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        html.escape(value),
        quote(value, ""),
    }
    return tuple(sorted(ways, key=len, reverse=True))
