"""A record that can tell whether it is still what was written: it carries the hash of everything else in it."""

from __future__ import annotations

import json
from typing import Any

from peftcli import files

KEY = "digest"


def sealed(text: str) -> str:
    """A JSON object as text, with the hash of its other keys as the last one."""
    document = json.loads(text)
    return files.to_json({**document, KEY: _digest(document)})


def is_broken(document: dict[str, Any]) -> bool:
    """Whether a document carries a hash that is not its own. One without a hash is of an older version."""
    found = document.get(KEY)
    return found is not None and found != _digest(document)


def _digest(document: dict[str, Any]) -> str:
    plain = {key: value for key, value in document.items() if key != KEY}
    return files.sha256_bytes(json.dumps(plain, sort_keys=True, ensure_ascii=True).encode())
