"""AdapterHub's prompt tuning in our terms: rows after the whole embedding block of an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from peftcli.adapters.foreign import ForeignFolder, Translation, head_modules, head_tensors
from peftcli.adapters.methods.prompt_tuning.config import PromptTuningConfig
from peftcli.adapters.prompts import HEAD_PREFIX, PROMPT_KEY
from peftcli.errors import AdapterError

_ROWS = ".prompt_embedding.weight"


def reads(fields: Mapping[str, Any]) -> bool:
    """Whether a configuration describes prompt tuning."""
    return fields.get("architecture") == PromptTuningConfig.name


def translate(model: nn.Module, foreign: ForeignFolder) -> Translation:
    """The adapter in our terms. Raises `AdapterError` for what is not here."""
    combine = foreign.fields.get("combine", "prefix")
    foreign.refuse([] if combine == "prefix" else [f"prompts that are not in front (combine: {combine})"])
    foreign.refuse_strangers(key for key in foreign.tensors if not key.endswith(_ROWS))
    # AdapterHub puts the adapter's name before the key, so only its end is known
    rows = [value for key, value in foreign.tensors.items() if key.endswith(_ROWS)]
    if len(rows) != 1 or rows[0].dim() != 2:
        raise AdapterError(f"expected one prompt, found {len(rows)}", where=str(foreign.path), fix="get it again")
    config = PromptTuningConfig(
        num_virtual_tokens=rows[0].shape[0],
        prompt_tuning_init="RANDOM",
        behind_embeddings=True,
        modules_to_save=head_modules(model, foreign),
    )
    return Translation(config, {PROMPT_KEY: rows[0]} | head_tensors(foreign, HEAD_PREFIX))
