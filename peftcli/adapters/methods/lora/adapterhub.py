"""AdapterHub's LoRA in our terms: y = W x + (alpha / r) B A x, one rank for all layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.adapterhub_sites import linear_fields
from peftcli.adapters.base import FILE_PREFIX, Adapter
from peftcli.adapters.foreign import Expression, ForeignFolder, Translation, head_modules, head_tensors
from peftcli.adapters.foreign_sublayers import config_of
from peftcli.adapters.layers import AdapterLayer
from peftcli.adapters.layers_method import LayersAdapter
from peftcli.adapters.methods.lora.config import LoraConfig
from peftcli.adapters.selection import SelectedParameters
from peftcli.errors import AdapterError
from peftcli.models.weights import weight_view

_KEY = re.compile(r"(?P<path>.+)\.loras\.[^.]+\.(?P<rest>lora_[AB])")


def reads(fields: Mapping[str, Any]) -> bool:
    """Whether a configuration describes LoRA that adds."""
    return fields.get("architecture") == "lora" and fields.get("composition_mode", "add") == "add"


def translate(model: nn.Module, foreign: ForeignFolder) -> Translation:
    """The adapter in our terms; its targets are the layers that it holds tensors for. Raises `AdapterError` for what has
    no counterpart."""
    theirs = foreign.fields
    faults = [f"{what} ({key})" for key, what in _REFUSED.items() if theirs.get(key)]
    foreign.refuse(faults)
    foreign.refuse_strangers(key for key in foreign.tensors if not _KEY.fullmatch(key))
    fields = {
        "r": theirs.get("r"),
        "lora_alpha": theirs.get("alpha"),
        "lora_dropout": theirs.get("dropout", 0.0),
        "target_modules": sorted({matched["path"] for key in foreign.tensors if (matched := _KEY.fullmatch(key))}),
        "modules_to_save": head_modules(model, foreign),
    }
    tensors = {}
    for key, tensor in foreign.tensors.items():
        matched = _KEY.fullmatch(key)
        assert matched is not None
        tensors[f"{FILE_PREFIX}{matched['path']}.{matched['rest']}.weight"] = tensor
    return Translation(config_of(LoraConfig, foreign, fields), tensors | head_tensors(foreign, FILE_PREFIX))


_REFUSED = {
    "use_gating": "gated pairs",
    "use_dora": "its DoRA",
    "vera_d": "VeRA",
    "vera_b": "VeRA",
}


def express(plain: nn.Module, adapter: Adapter, name: str, where: str) -> Expression:
    """The adapter in AdapterHub's terms: pairs of one rank, filled up with zeros, whose scale is in B.

    Raises `AdapterError` for pairs that are more than that, or lie where the library has none.
    """
    layers = dict(adapter.layers) if isinstance(adapter, LayersAdapter) else {}
    pairs = {
        path: _pair(path, layer, where) for path, layer in layers.items() if not isinstance(layer, SelectedParameters)
    }
    rank = max(lora_A.shape[0] for lora_A, _ in pairs.values())
    fields, covered = linear_fields(plain, set(pairs), where)
    tensors: dict[str, Tensor] = {}
    for site in covered:
        rows, columns = weight_view(plain.get_submodule(site.path)).shape
        lora_A, lora_B = torch.zeros(rank, columns), torch.zeros(rows, rank)
        if site.path in pairs:
            given_A, given_B = pairs[site.path]
            lora_A[: len(given_A)], lora_B[:, : len(given_A)] = given_A, given_B
        tensors |= {f"{site.path}.loras.{name}.lora_A": lora_A, f"{site.path}.loras.{name}.lora_B": lora_B}
    return Expression(
        fields
        | {
            "architecture": "lora", "r": rank, "alpha": rank, "dropout": 0.0, "composition_mode": "add",
            "init_weights": "lora", "init_weights_seed": None, "use_gating": False, "use_dora": False, "vera_d": None,
            "vera_b": None, "dtype": None,
        },
        tensors,
    )  # fmt: skip


def _pair(path: str, layer: AdapterLayer, where: str) -> tuple[Tensor, Tensor]:
    """A and B of a layer's update, the scale in B."""
    with torch.no_grad():
        factors = layer.low_rank_update()
    if factors is None:
        raise AdapterError(
            f"AdapterHub's library has no pair for the update of `{path}`", where=where, fix="`peft export --to peft`"
        )
    left, right = factors
    return right.detach().float(), left.detach().float()
