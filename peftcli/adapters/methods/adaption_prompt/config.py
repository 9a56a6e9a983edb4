"""Fields of LLaMA-Adapter (arXiv:2303.16199), under the names of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from peftcli.adapters.config import Kind, MethodConfig


class AdaptionPromptConfig(MethodConfig):
    """Adds to each upper attention what it finds in a trained prompt, through a gate that starts at zero."""

    name: ClassVar[str] = "adaption_prompt"
    summary: ClassVar[str] = "gated attention to trained prompts in the upper layers (LLaMA-Adapter)"
    kind: ClassVar[Kind] = "layers"
    peft_type: ClassVar[str] = "ADAPTION_PROMPT"
    in_peft: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 3e-2
    block_fields: ClassVar[tuple[str, ...]] = ("adapter_layers",)
    file_defaults: ClassVar[Mapping[str, Any]] = {"target_modules": None, "adapter_len": None, "adapter_layers": None}

    target_modules: str | None = None
    """Name of the attention modules; default: the model's own (`self_attn`, `attn`)."""
    adapter_len: Annotated[int, Field(ge=1)] = 10
    """Tokens of each layer's prompt."""
    adapter_layers: Annotated[int, Field(ge=1)] | None = None
    """How many layers are adapted, counted from the last; default: all."""
