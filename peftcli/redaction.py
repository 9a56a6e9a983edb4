"""Credentials: what they look like, so that no recipe, log, report or error carries one."""

from __future__ import annotations

import re

REMEDY = "use the environment (HF_TOKEN, WANDB_API_KEY, ...); a recipe is copied into runs and reports"

_KEY = re.compile(
    r"(^|_)(tokens?|secrets?|passwords?|passwd|passphrase|api_?keys?|access_?keys?|private_?keys?|credentials?)$"
)
_TOKENIZER_WORDS = re.compile(
    r"(^|_)(pad|eos|bos|unk|cls|sep|mask|stop|end|start|num|max|min|new|virtual|special|image|trained|total)_tokens?$"
)
_VALUES = (
    re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    re.compile(r"\b(?:ghp|gho|ghs|ghu|ghr)_[A-Za-z0-9]{20,}"),
    re.compile(r"\bgithub_pat_[A-Za-z0-9_]{20,}"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    re.compile(r"\bAIza[0-9A-Za-z_-]{30,}"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
)


def is_secret_key(key: str) -> bool:
    """Whether a key asks for a secret (`hub_token`, `api-key`), not for a number or word of tokens (`eos_token`)."""
    name = key.lower().replace("-", "_")
    return bool(_KEY.search(name)) and not _TOKENIZER_WORDS.search(name)


def holds_secret(text: str) -> bool:
    """Whether a text has the shape of a known kind of credential."""
    return any(pattern.search(text) for pattern in _VALUES)


def redacted(text: str) -> str:
    """The text with every credential replaced by `***`."""
    for pattern in _VALUES:
        text = pattern.sub("***", text)
    return text
