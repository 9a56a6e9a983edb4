"""Ways to store the weights of a frozen base: those that a recipe may name, and what a `config.json` says of its own;
free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PACKAGES: Mapping[str, str] = {"nf4": "bitsandbytes", "int8": "bitsandbytes"}
"""Value of `model.quantization` -> the package that packs weights so."""
CONFIG_KEYS = ("quantization_config", "compression_config")
"""Sections of a `config.json` that say how weights are quantized."""


@dataclass(frozen=True)
class StoredQuantization:
    """How a checkpoint says that it is quantized."""

    method: str
    """The name under which transformers knows it."""
    storage: str
    """What a weight of it is stored as: `nf4`, `fp4`, `int8`, or the method's name."""
    kept: tuple[str, ...] | None = None
    """Modules that it says were left alone; None for the method's own default."""


def quantization_of(config: Mapping[str, Any]) -> StoredQuantization | None:
    """How a `config.json` says that its weights, or those of a part of it, are quantized; None where it does not."""
    sections = [config, *(value for value in config.values() if isinstance(value, dict))]
    for section in sections:
        for key in CONFIG_KEYS:
            found = section.get(key)
            if found:
                return _read(found) if isinstance(found, dict) else StoredQuantization("unnamed method", "unnamed")
    return None


def _read(section: Mapping[str, Any]) -> StoredQuantization:
    four, eight = section.get("load_in_4bit") is True, section.get("load_in_8bit") is True
    method = str(section.get("quant_method") or ("bitsandbytes" if four or eight else "unnamed method"))[:40]
    storage = str(section.get("bnb_4bit_quant_type", "fp4"))[:8] if four else "int8" if eight else method
    kept = section.get("llm_int8_skip_modules")
    return StoredQuantization(method, storage, tuple(map(str, kept)) if isinstance(kept, list) else None)


def stored_as(config: Mapping[str, Any]) -> str | None:
    """The storage that a `config.json` says its weights have; None for plain ones."""
    found = quantization_of(config)
    return None if found is None else found.storage
