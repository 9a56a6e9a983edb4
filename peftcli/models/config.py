"""The recipe's `model` section, free of torch."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from peftcli.data.chat.names import DAY_VARIABLE, RESERVED
from peftcli.errors import FieldFault

LATER_ATTENTION = ("flash_attention_2", "flex_attention")

_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")


class ModelConfig(BaseModel):
    """Which base model, and how it is loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    base: Annotated[str, Field(min_length=1, max_length=4096)]
    """A Hub id, a folder, or `builtin:NAME` (ships with the package, works offline)."""
    revision: str | None = None
    """Commit, tag or branch of a base from the Hub; a commit is pinned in the lock either way."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the frozen base weights; auto follows `training.precision`."""
    quantization: Literal["nf4", "int8"] | None = None
    """Storage of the frozen weights of the base's linear layers, heads and embeddings apart: 4 bits (nf4, its scales
    quantized too) or 8 (int8). Needs the package bitsandbytes. A checkpoint that is quantized already needs no key."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"] = "auto"
    """Attention implementation; auto is the fastest one that is exact and here. The last two are not supported yet."""
    chat_template: Annotated[str, Field(min_length=1)] | None = None
    """A Jinja file with the chat template; default: the tokenizer's own."""
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Variables of the chat template, e.g. `{enable_thinking: false}`: the same in training, evaluation, generation and
    chat. `strftime_now: 2026-11-27` is the date that templates get which ask for today's."""
    add_tokens: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(default_factory=list)
    """Tokens to add behind those of the tokenizer: plain text that is never cut again. Their rows start at the mean of the
    pieces that they replace, and are trained (whole tables where `modules_to_save` names them)."""
    init_adapter: Annotated[str, Field(min_length=1)] | None = None
    """Continue from this adapter: its folder, its run, or `owner/name@revision` of the Hub. Its own fields rule: `method`
    may be left out, and what it says must be what the adapter has."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _own_variables(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in RESERVED:
                raise FieldFault(f"{name} is given by the conversation itself")
        if DAY_VARIABLE in value:
            try:
                datetime.date.fromisoformat(str(value[DAY_VARIABLE]))
            except ValueError as error:
                raise FieldFault(f"{DAY_VARIABLE} must be a date like 2026-11-27") from error
        return value

    @field_validator("revision")
    @classmethod
    def _known_form(cls, value: str | None) -> str | None:
        if value is not None and (not _REVISION.fullmatch(value) or ".." in value or value.startswith("refs/pr")):
            raise FieldFault("must be a commit, tag or branch name")
        return value

    @field_validator("add_tokens")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        for token in value:
            if token != token.strip():
                raise FieldFault(f"{token!r} begins or ends with a space, which tokenizers take away")
            if value.count(token) > 1:
                raise FieldFault(f"names {token!r} twice", "name each once")
        return value

    @field_validator("attention")
    @classmethod
    def _attention_comes_later(cls, value: str) -> str:
        if value in LATER_ATTENTION:
            raise FieldFault(f"attention: {value} is not supported yet", "use auto, sdpa or eager")
        return value
