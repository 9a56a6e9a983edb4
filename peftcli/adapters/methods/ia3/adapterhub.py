"""AdapterHub's (IA)^3 in our terms: y = l * (W x + b), a LoRA of that library that scales."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from peftcli.adapters.adapterhub_sites import linear_fields
from peftcli.adapters.base import FILE_PREFIX, Adapter
from peftcli.adapters.foreign import Expression, ForeignFolder, Translation, head_modules, head_tensors
from peftcli.adapters.foreign_sublayers import config_of
from peftcli.adapters.layers_method import LayersAdapter
from peftcli.adapters.methods.ia3.config import Ia3Config
from peftcli.adapters.methods.ia3.method import Ia3Layer
from peftcli.errors import AdapterError
from peftcli.models.weights import weight_view

_KEY = re.compile(r"(?P<path>.+)\.loras\.[^.]+\.lora_B")


def reads(fields: Mapping[str, Any]) -> bool:
    """Whether a configuration describes LoRA that scales."""
    return fields.get("architecture") == "lora" and fields.get("composition_mode") == "scale"


def translate(model: nn.Module, foreign: ForeignFolder) -> Translation:
    """The adapter in our terms; its targets are the layers that it holds factors for. Raises `AdapterError` for what has
    no counterpart."""
    theirs = foreign.fields
    foreign.refuse(["gated factors (use_gating)"] if theirs.get("use_gating") else [])
    foreign.refuse_strangers(key for key in foreign.tensors if not _KEY.fullmatch(key))
    paths = sorted(matched["path"] for key in foreign.tensors if (matched := _KEY.fullmatch(key)))
    fields = {"target_modules": paths, "feedforward_modules": [], "modules_to_save": head_modules(model, foreign)}
    scale = float(theirs.get("alpha", 1))
    tensors = {}
    for key, tensor in foreign.tensors.items():
        matched = _KEY.fullmatch(key)
        assert matched is not None
        tensors[f"{FILE_PREFIX}{matched['path']}.ia3_l"] = tensor * scale
    return Translation(config_of(Ia3Config, foreign, fields), tensors | head_tensors(foreign, FILE_PREFIX))


def express(plain: nn.Module, adapter: Adapter, name: str, where: str) -> Expression:
    """The adapter in AdapterHub's terms; layers that it has factors for and ours has not get ones.

    Raises `AdapterError` for factors of inputs, and of layers where the library has none.
    """
    layers = dict(adapter.layers) if isinstance(adapter, LayersAdapter) else {}
    factors = {path: layer for path, layer in layers.items() if isinstance(layer, Ia3Layer)}
    inputs = sorted({path.rpartition(".")[2] for path, layer in factors.items() if layer.feedforward})
    if inputs:
        raise AdapterError(
            f"AdapterHub's library scales outputs only, and the adapter scales the inputs of {', '.join(inputs)}",
            where=where,
            fix="train with method.feedforward_modules=[]",
        )
    fields, covered = linear_fields(plain, set(factors), where)
    tensors = {}
    for site in covered:
        rows = weight_view(plain.get_submodule(site.path)).shape[0]
        given = factors.get(site.path)
        value = torch.ones(rows, 1) if given is None else given.ia3_l.detach().clone()
        tensors[f"{site.path}.loras.{name}.lora_B"] = value
    return Expression(
        fields
        | {
            "architecture": "lora", "r": 1, "alpha": 1, "dropout": 0.0, "composition_mode": "scale",
            "init_weights": "ia3", "init_weights_seed": None, "use_gating": False, "use_dora": False, "vera_d": None,
            "vera_b": None, "dtype": None,
        },
        tensors,
    )  # fmt: skip
