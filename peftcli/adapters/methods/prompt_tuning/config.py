"""Fields of prompt tuning (arXiv:2104.08691), under the names of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from peftcli.adapters.prompt_config import PROMPT_FILE_DEFAULTS, PromptConfig
from peftcli.errors import FieldFault


class PromptTuningConfig(PromptConfig):
    """Trains the embeddings of virtual tokens in front of every input."""

    name: ClassVar[str] = "prompt_tuning"
    summary: ClassVar[str] = "trained token embeddings in front of the input"
    peft_type: ClassVar[str] = "PROMPT_TUNING"
    in_peft: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 3e-2
    beyond_peft: ClassVar[Mapping[str, Any]] = {"behind_embeddings": True}
    free_text: ClassVar[tuple[str, ...]] = ("prompt_tuning_init_text",)
    file_defaults: ClassVar[Mapping[str, Any]] = {
        **PROMPT_FILE_DEFAULTS,
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "tokenizer_name_or_path": None,
        "tokenizer_kwargs": None,
    }

    recipe_only: ClassVar[frozenset[str]] = frozenset({"behind_embeddings"})

    prompt_tuning_init: Literal["SAMPLE_VOCAB", "TEXT", "RANDOM"] = "SAMPLE_VOCAB"
    """Start: SAMPLE_VOCAB (rows of the base's embedding, drawn at random), TEXT (those of a text), or RANDOM (normal,
    as wide as the base's embedding)."""
    prompt_tuning_init_text: str | None = None
    """The text of a TEXT start: its first tokens, repeated where it is shorter than the prompt."""
    behind_embeddings: bool = False
    """Put the rows after the base's whole embedding block (positions, types, norm), as AdapterHub does in encoders;
    false: among the token embeddings, as Hugging Face PEFT does."""

    @classmethod
    def idle_fields(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        """The text of a start that is not `TEXT`."""
        return {} if document.get("prompt_tuning_init") == "TEXT" else {"prompt_tuning_init_text": None}

    @model_validator(mode="after")
    def _text_and_start_agree(self) -> Self:
        if (self.prompt_tuning_init == "TEXT") != bool(self.prompt_tuning_init_text):
            raise FieldFault("`prompt_tuning_init: TEXT` and `prompt_tuning_init_text` need each other")
        return self
