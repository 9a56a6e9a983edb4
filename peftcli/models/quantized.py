"""Whether a checkpoint stores its weights quantized, which peftcli cannot read yet: told before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from peftcli.errors import ModelError

_KEYS = ("quantization_config", "compression_config")
_PACKED_TYPES = ("F8_", "F6_", "F4")


def quantization_of(config: Mapping[str, Any]) -> str | None:
    """The method by which a `config.json` says that its weights, or those of a part of it, are quantized; else None."""
    sections = [config, *(value for value in config.values() if isinstance(value, dict))]
    for section in sections:
        for key in _KEYS:
            found = section.get(key)
            if found:
                method = found.get("quant_method") if isinstance(found, dict) else None
                return str(method or "unnamed method")[:40]
    return None


def packed_type(paths: Iterable[Path]) -> str | None:
    """The first type of fewer than 16 bits for numbers that safetensors files hold: cast as they stand they would lack
    their scales. None where there is none."""
    for path in paths:
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - no mapping
                name = str(tensors.get_slice(key).get_dtype())
                if name.startswith(_PACKED_TYPES):
                    return name
    return None


def quantized_base(name: str, storage: str, where: str | None) -> ModelError:
    """The error for such a base."""
    return ModelError(
        f"the weights of {name} are stored quantized ({storage}), which is not supported yet",
        where=where,
        fix="a release with weights in bfloat16, where there is one; else a copy that transformers has dequantized",
    )
