"""Fields of prefix tuning (arXiv:2101.00190), under the names of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftcli.adapters.prompt_config import PROMPT_FILE_DEFAULTS, PromptConfig
from peftcli.errors import FieldFault


class PrefixTuningConfig(PromptConfig):
    """Trains keys and values that every self-attention finds before those of the input."""

    name: ClassVar[str] = "prefix_tuning"
    summary: ClassVar[str] = "trained keys and values in front of every attention"
    peft_type: ClassVar[str] = "PREFIX_TUNING"
    in_peft: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 1e-1
    beyond_peft: ClassVar[Mapping[str, Any]] = {"shift_positions": False}
    file_defaults: ClassVar[Mapping[str, Any]] = {
        **PROMPT_FILE_DEFAULTS,
        "encoder_hidden_size": None,
        "init_weights": None,
        "prefix_projection": False,
    }
    recipe_only: ClassVar[frozenset[str]] = frozenset(
        {"prefix_init", "prefix_init_text", "encoder_input_size", "shift_positions"}
    )

    prefix_projection: bool = False
    """Make the prefix by a small network while training (one hidden layer), as the paper does."""
    encoder_hidden_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Width of that network's hidden layer; default: the width of a layer's keys."""
    encoder_input_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Width of that network's trained inputs; default: the width of a layer's keys."""
    shift_positions: bool = True
    """Count the prefix as tokens: the input's positions begin after it, as in Hugging Face PEFT. false: they begin at
    the start, as in AdapterHub."""
    prefix_init: Literal["text", "zero", "random"] = "text"
    """Start: `text` (keys and values that the base itself computes for a text), `zero`, or `random` (normal)."""
    prefix_init_text: str | None = None
    """The text of a `text` start; default: the first training rows."""

    def own_learning_rate(self) -> float:
        """The default; a tenth of it with a network."""
        # the network multiplies a step: measured best at a tenth of the plain prefix's rate
        return self.learning_rate / 10 if self.prefix_projection else self.learning_rate

    @model_validator(mode="after")
    def _text_and_start_agree(self) -> Self:
        if self.prefix_init_text is not None and self.prefix_init != "text":
            raise FieldFault(f"`prefix_init_text` has no effect with `prefix_init: {self.prefix_init}`")
        return self
