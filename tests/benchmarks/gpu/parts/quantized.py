"""Bases in 4 and 8 bits: a step of training, weights that stay as they were packed, and gradients of what they stand for."""

from __future__ import annotations

import importlib.util
import math

import torch
from setting import Setting, losses, require, train

from peftcli import adapters
from peftcli.adapters.identity import base_fingerprint
from peftcli.adapters.surgery import adapter_of
from peftcli.models.dequantized import dequantize, storage_name
from peftcli.models.load import load_model
from peftcli.models.source import resolve_base
from peftcli.models.storage_names import PACKAGES

WORTH = 66
SECONDS = 90
APART = 1e-5
"""Of the largest gradient, in float32 without tf32."""


def run(setting: Setting) -> str:
    found = {
        storage: _try(setting, storage) for storage, package in PACKAGES.items() if importlib.util.find_spec(package)
    }
    setting.note(storages=found)
    return "; ".join(f"{storage}: {said}" for storage, said in found.items()) or "bitsandbytes is not installed"


def _try(setting: Setting, storage: str) -> str:
    recipe = setting.recipe(
        storage,
        model={"base": "builtin:tiny", "quantization": storage},
        method={"type": "lora", "r": 4},
        data={"train": {"path": "builtin:support", "rows": 16}, "validation": 4},
        training={"max_steps": 2, "batch_size": 4},
        evaluation={"every": None, "rows": 4, "samples": 0},
    )
    record = train(recipe, setting.folder / storage)
    require(all(map(math.isfinite, losses(setting.folder / storage))), "a loss is not finite")
    require(record["settings"].get("quantization") == storage, "the record does not say how the base was stored")
    return f"trained, gradients apart {_apart(setting, storage):.1e}"


def _apart(setting: Setting, storage: str) -> float:
    """How far gradients are from those on the dequantized base, over the largest."""
    source = resolve_base("builtin:tiny", folder=setting.folder)
    model = load_model(source, quantization=storage, device=setting.device)
    require(storage_name(model) == storage, "no layer was packed")
    before = base_fingerprint(model)
    adapters.attach(model, {"type": "lora", "r": 4})
    with torch.no_grad():
        for parameter in adapter_of(model).trainable_parameters().values():
            parameter.add_(0.01)
    packed = _gradients(model.train(), setting)
    require(base_fingerprint(model) == before, "the base changed")
    dequantize(model)
    plain = _gradients(model, setting)
    largest = max(float(gradient.abs().max()) for gradient in plain)
    apart = max(float((a - b).abs().max()) for a, b in zip(packed, plain, strict=True)) / largest
    require(apart < APART, f"{storage}: gradients differ by {apart:.1e} of the largest")
    return apart


def _gradients(model: torch.nn.Module, setting: Setting) -> list[torch.Tensor]:
    rows = torch.arange(5, 37, device=setting.device).view(2, 16)
    model.zero_grad()
    model(input_ids=rows, labels=rows).loss.backward()
    return [p.grad.clone() for p in adapter_of(model).trainable_parameters().values() if p.grad is not None]
