"""LoRA and DoRA of mlx-lm: y = W x + scale (x A) B, with A (in, r) and B (r, out), transposed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from peftcli.adapters.base import FILE_PREFIX
from peftcli.adapters.foreign import ForeignFolder, Translation
from peftcli.adapters.foreign_sublayers import config_of
from peftcli.adapters.methods.lora.config import MLX_NAMES, LoraConfig

_MAGNITUDE = "m"


def reads(fields: Mapping[str, Any]) -> bool:
    """Whether a configuration is of adapters, not of a whole model."""
    return fields.get("fine_tune_type") in ("lora", "dora")


def translate(model: nn.Module, foreign: ForeignFolder) -> Translation:
    """The adapter in our terms; its targets are the layers that it holds tensors for. Raises `AdapterError` for what has
    no counterpart."""
    given: Mapping[str, Any] = foreign.fields["lora_parameters"]
    is_dora = foreign.fields["fine_tune_type"] == "dora"
    names = {**MLX_NAMES, **({_MAGNITUDE: "lora_magnitude_vector"} if is_dora else {})}
    foreign.refuse_strangers(key for key in foreign.tensors if key.rpartition(".")[2] not in names)
    foreign.refuse(
        [f"pairs of experts (`{key}`)" for key, tensor in foreign.tensors.items() if tensor.dim() > 2][:1]
        + [f"a `{name}` that is not a number" for name in ("rank", "scale") if not _is_number(given.get(name))]
    )
    fields = {
        "r": given["rank"],
        # mlx-lm writes the scale itself, and ours is alpha / r
        "lora_alpha": given["scale"] * given["rank"],
        "lora_dropout": given.get("dropout") or 0.0,
        "use_dora": is_dora,
        "target_modules": None,
    }
    tensors = {}
    for key, tensor in foreign.tensors.items():
        path, _, name = key.rpartition(".")
        tensors[f"{FILE_PREFIX}{path}.{names[name]}"] = tensor.T if tensor.dim() == 2 else tensor
    return Translation(config_of(LoraConfig, foreign, fields), tensors)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
