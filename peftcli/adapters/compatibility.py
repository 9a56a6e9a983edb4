"""Which method works on which family: the table that the contract suite generated; free of torch.

    {"families": {"llama": {"model_type": "llama", "biases": {"attention_bias": false}}},
     "methods": {"lora": {"llama": "yes", ...}}}

`peftcli.testing.compatibility` writes it; tests hold it current.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftcli import files

YES = "yes"
TABLE_PATH = Path(__file__).with_name("compatibility.json")
_LIMIT_BYTES = 1 << 20


@functools.cache
def table() -> Mapping[str, Mapping[str, Any]]:
    """The whole document; empty parts where the file is not there (before it is first generated)."""
    if not TABLE_PATH.is_file():
        return {"families": {}, "methods": {}}
    document: Mapping[str, Mapping[str, Any]] = json.loads(files.read_bounded(TABLE_PATH, limit_bytes=_LIMIT_BYTES))
    return document


def families() -> tuple[str, ...]:
    """Names of the families that the suite runs."""
    return tuple(table()["families"])


def works_with(method: str) -> Mapping[str, str]:
    """Family -> `yes` or the reason against it; empty for a method of another package."""
    found: Mapping[str, str] = table()["methods"].get(method, {})
    return found


def refusal(method: str, model_type: str, config: Mapping[str, Any] | None = None) -> str | None:
    """Why a method cannot work on a base with this `model_type`; None where it does, or where it is not known.

    `config`: the base's `config.json`. A base whose biases are switched otherwise than those of the family that was
    tried is another case: nothing is said of it.
    """
    for family, facts in table()["families"].items():
        if facts["model_type"] != model_type:
            continue
        differs = any((config or {}).get(key, value) != value for key, value in facts["biases"].items())
        found = works_with(method).get(family, YES)
        return None if found == YES or differs else found
    return None
