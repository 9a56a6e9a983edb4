"""Which tool a file is of, read from its keys."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from peftcli.errors import RecipeError
from peftcli.migrating.tools import (
    adapter_config,
    axolotl,
    hugging_face,
    litgpt,
    llama_factory,
    mlx,
    swift,
    torchtune,
)

TOOLS: tuple[ModuleType, ...] = (
    adapter_config,
    torchtune,
    mlx,
    llama_factory,
    swift,
    axolotl,
    litgpt,
    # last: other tools take over the names of TrainingArguments
    hugging_face,
)


def tool_of(given: Mapping[str, Any], where: str) -> ModuleType:
    """The module of the tool that has such keys. Raises `RecipeError` where none has."""
    if {"model", "data", "method"} <= given.keys():
        raise RecipeError("this is a recipe already", where=where, fix=f"`peft validate {where}`")
    for tool in TOOLS:
        if tool.is_one(given):
            return tool
    names = ", ".join(str(tool.NAME) for tool in TOOLS)
    raise RecipeError(
        "no tool that is known here writes such a file",
        where=where,
        fix=f"known are {names}; `peft init` writes a recipe to fill in",
    )
