"""Which method works on which family, as the contract suite found it; free of torch.

    families.json                           {"llama": {"model_type": "llama", "biases": {"attention_bias": false}}, ...}
    methods/<name>/compatibility.json       {"llama": "yes", "bert": "the reason against it", ...}
    methods/<name>/storages.json            {"nf4": "yes", "int8": "the reason against it", ...}
    methods/<name>/tasks.json               {"causal-lm": "yes", "reward": "the reason against it", ...}

`python -m peftcli.testing.compatibility [METHOD ...]` writes the first two, `python -m peftcli.testing.storages
[METHOD ...]` the third, `python tests/tasks/cross_products.py [METHOD ...]` the last; tests hold them current.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.adapters.registry import METHODS_FOLDER

YES = "yes"
"""What the table says of a method and a model family that work together; any other text is the reason why not."""
NOT_MERGED = "not merged: "
"""Begins what the table says of a method and a task that work together, but for merging; the reason follows."""
FAMILIES_PATH = Path(__file__).with_name("families.json")
"""What the families of models that methods are tried on have in their `config.json`; see `family_facts`."""
_LIMIT_BYTES = 1 << 20


def row_path(method: str) -> Path:
    """Where a method's part of the table lies: in its own folder."""
    return METHODS_FOLDER / method / "compatibility.json"


def storages_path(method: str) -> Path:
    """Where it lies on which quantized bases a method works: in its own folder."""
    return METHODS_FOLDER / method / "storages.json"


def tasks_path(method: str) -> Path:
    """Where it lies for which tasks a method works: in its own folder."""
    return METHODS_FOLDER / method / "tasks.json"


@functools.cache
def _document(path: Path) -> Mapping[str, Any]:
    """Empty where the file is not there: before it is first generated, and for a method of another package."""
    if not path.is_file():
        return {}
    document: Mapping[str, Any] = json.loads(files.read_bounded(path, limit_bytes=_LIMIT_BYTES))
    return document


def family_facts() -> Mapping[str, Mapping[str, Any]]:
    """Family -> what a base's `config.json` says of it: its type, and which of its biases are switched on."""
    return _document(FAMILIES_PATH)


def families() -> tuple[str, ...]:
    """Names of the families that the suite runs."""
    return tuple(family_facts())


def works_with(method: str) -> Mapping[str, str]:
    """Family -> `yes` or the reason against it; empty for a method of another package."""
    return _document(row_path(method))


def refusal(method: str, model_type: str, config: Mapping[str, Any] | None = None) -> str | None:
    """Why a method cannot work on a base with this `model_type`; None where it does, or where it is not known.

    `config`: the base's `config.json`. A base whose biases are switched otherwise than those of the family that was
    tried is another case: nothing is said of it.
    """
    for family, facts in family_facts().items():
        if facts["model_type"] != model_type:
            continue
        # a key that the config lacks is taken as the family has it
        differs = any((config or {}).get(key, value) != value for key, value in facts["biases"].items())
        found = works_with(method).get(family, YES)
        return None if found == YES or differs else found
    return None


def storages_of(method: str) -> Mapping[str, str]:
    """Storage of a base's weights -> `yes` or the reason against it; empty for a method of another package."""
    return _document(storages_path(method))


def storage_refusal(method: str, storage: str) -> str | None:
    """Why a method cannot work on a base whose weights are stored so; None where it does, or where it is not known."""
    found = storages_of(method).get(storage, YES)
    return None if found == YES else found


def tasks_of(method: str) -> Mapping[str, str]:
    """Task -> `yes`, `not merged: ` with the reason, or the reason why a recipe with both is refused; empty for a method
    of another package."""
    return _document(tasks_path(method))
