"""The recipe's `model` section, free of torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class ModelConfig(BaseModel):
    """The base model, and how its weights are held."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    base: Annotated[str, Field(min_length=1)]
    """A Hub id, a folder, or `builtin:NAME` (ships with the package, works offline)."""
    revision: str | None = None
    """Commit, tag or branch of a Hub base."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the frozen base; auto: that of `training.precision`."""
    quantization: Literal["nf4", "int8"] | None = None
    """Hold the base in 4 or 8 bits (not supported yet)."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"] = "auto"
    """Attention kernel; auto: what transformers chooses."""
    chat_template: str | None = None
    """A Jinja file instead of the tokenizer's own template."""
    init_adapter: str | None = None
    """Folder of an adapter of the same method to train on from (not supported yet)."""

    @field_validator("revision")
    @classmethod
    def _no_pull_request(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("refs/"):
            raise ValueError("is a reference that anybody can move; name a commit, a tag or a branch")
        return value

    @field_validator("quantization", "init_adapter")
    @classmethod
    def _comes_later(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("is not supported yet; leave it out")
        return value

    @field_validator("attention")
    @classmethod
    def _attention_comes_later(cls, value: str) -> str:
        if value in ("flash_attention_2", "flex_attention"):
            raise ValueError(f"{value} is not supported yet; use auto, sdpa or eager")
        return value
