"""What the configurations of prompt methods have in common; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

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
    in_peft: ClassVar[bool] = True
    file_defaults: ClassVar[Mapping[str, Any]] = PROMPT_FILE_DEFAULTS

    num_virtual_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    """Number of virtual tokens in front of every input."""
    modules_to_save: list[str] | None = None
    """Modules trained whole beside the prompt, e.g. a classification head; saved with the adapter."""

    @classmethod
    def idle_fields(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        """Fields that have no effect in a file, and what to read in their place; the file keeps them when written again."""
        return {}

    @classmethod
    def from_file(cls, document: Mapping[str, Any], *, where: str) -> tuple[Self, dict[str, Any]]:
        idle = {field: value for field, value in cls.idle_fields(document).items() if field in document}
        config, kept = super().from_file({**document, **idle}, where=where)
        return config, kept | {field: document[field] for field in idle}
