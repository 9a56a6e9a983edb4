"""What the configurations of prompt methods have in common; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from peftcli.adapters.config import Kind, MethodConfig

PROMPT_FILE_DEFAULTS: Mapping[str, Any] = {
    "num_virtual_tokens": None,
    "token_dim": None,
    "num_transformer_submodules": None,
    "num_attention_heads": None,
    "num_layers": None,
    "modules_to_save": None,
}
"""Fields that the reference writes for every prompt method; most are facts of the base, filled in when saving."""


class PromptConfig(MethodConfig):
    """Base of the configurations of methods that put virtual tokens in front of the input."""

    kind: ClassVar[Kind] = "prompt"
    file_defaults: ClassVar[Mapping[str, Any]] = PROMPT_FILE_DEFAULTS

    num_virtual_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    """Number of virtual tokens in front of every input."""
    modules_to_save: list[str] | None = None
    """Modules trained whole beside the prompt, e.g. a classification head; saved with the adapter."""
