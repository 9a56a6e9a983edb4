"""`adapter_config.json` of Hugging Face PEFT: the method, and the base that it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.adapters.registry import config_class_of_type
from peftcli.migrating.draft import Draft

NAME = "Hugging Face PEFT's adapter_config.json"
_AWAY = {
    "task_type": "the recipe's `task` says it",
    "auto_mapping": "the recipe's `task` says it",
    "inference_mode": "said by what the adapter is used for",
    "peft_version": "a fact about the file",
}


def is_one(given: Mapping[str, Any]) -> bool:
    """Every such file names its method under `peft_type`."""
    return isinstance(given.get("peft_type"), str)


def carry(draft: Draft) -> None:
    """Read as an adapter's own file is: the same fields, checks and defaults. Raises `AdapterError` as that does."""
    document = dict(draft.given)
    config, _ = config_class_of_type(document["peft_type"], where="peft_type").from_file(
        document, where="adapter_config.json"
    )
    draft.same({"base_model_name_or_path": "model.base", "revision": "model.revision"})
    draft.put("peft_type", "method.type", config.name)
    own = config.model_dump(mode="json", exclude={"type"})
    usual = type(config)().model_dump(mode="json", exclude={"type"})
    for key, value in own.items():
        if value != usual[key]:
            draft.put(key, f"method.{key}", value)
        elif draft.has(key):
            draft.idle({key: (draft.look(key),)}, "our default")
    draft.without(_AWAY)
    for key in [key for key, value in draft.given.items() if value in (None, False, [], {}) and key not in own]:
        draft.idle({key: (draft.look(key),)}, "off")
