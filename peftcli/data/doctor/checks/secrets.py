"""Strings of the shape of credentials: a model may repeat them. They are named by kind, never quoted."""

from __future__ import annotations

import re
from collections.abc import Iterable

from peftcli.data.doctor.base import Check, RowBatch

# what must stand in a text at all, then the whole shape
_KINDS: tuple[tuple[str, str, re.Pattern[str]], ...] = (
    ("a Hugging Face token", "hf_", re.compile(r"\bhf_[A-Za-z0-9]{30,}")),
    ("an API key", "sk-", re.compile(r"\bsk-[A-Za-z0-9_-]{20,}")),
    ("an AWS access key", "AKIA", re.compile(r"\bAKIA[0-9A-Z]{16}\b")),
    ("a GitHub token", "gh", re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22,})")),
    ("a GitLab token", "glpat-", re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}")),
    ("a Slack token", "xox", re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}")),
    ("a Google API key", "AIza", re.compile(r"\bAIza[0-9A-Za-z_-]{35}")),
    ("a private key", "-----BEGIN", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")),
    ("a signed token", "eyJ", re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}")),
    ("a password in an address", "://", re.compile(r"\b[a-z][a-z0-9+]*://[^\s/:@]+:[^\s/:@]{3,}@[^\s/]+")),
)


def scan(batch: RowBatch) -> Iterable[tuple[int, str]]:
    possible = [(kind, start, shape) for kind, start, shape in _KINDS if start in batch.joined]
    for position, text in enumerate(batch.texts) if possible else ():
        for kind, start, shape in possible:
            if start in text and shape.search(text):
                yield position, f"the text holds {kind}"
                break


CHECK = Check("warn", "strings of the shape of credentials", scan=scan)
