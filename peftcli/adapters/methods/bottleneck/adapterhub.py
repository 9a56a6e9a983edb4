"""AdapterHub's bottleneck adapters (seq_bn, double_seq_bn, par_bn) in our terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from peftcli.adapters.base import Adapter
from peftcli.adapters.foreign import Expression, ForeignFolder, Translation
from peftcli.adapters.foreign_sublayers import (
    config_of,
    expressed_fields,
    expressed_tensors,
    is_sublayers,
    shared_fields,
    sublayer_tensors,
)
from peftcli.adapters.methods.bottleneck.config import BottleneckConfig
from peftcli.models.structure import structure


def reads(fields: Mapping[str, Any]) -> bool:
    """Whether a configuration describes plain bottleneck adapters."""
    return is_sublayers(fields) and not fields.get("phm_layer")


def translate(model: nn.Module, foreign: ForeignFolder) -> Translation:
    """The adapter in our terms. Raises `AdapterError` for what is not here."""
    fields = shared_fields(model, foreign) | {
        # its other starts (`houlsby`, `mam_adapter`) have no name here; the file's tensors replace the start anyway
        "init_weights": "bert" if foreign.fields.get("init_weights", "bert") == "bert" else "zero"
    }
    config = config_of(BottleneckConfig, foreign, fields)
    return Translation(config, sublayer_tensors(model, foreign, norm_before=config.ln_before))


def express(plain: nn.Module, adapter: Adapter, name: str, where: str) -> Expression:
    """The adapter in AdapterHub's terms. Its projections always have biases: those that are missing are zero."""
    config = adapter.config
    assert isinstance(config, BottleneckConfig), "of this method"
    tensors = expressed_tensors(plain, adapter, name)
    if not config.bias:
        weights = [key for key in tensors if ".adapter_down." in key or ".adapter_up." in key]
        tensors |= {
            f"{key.removesuffix('weight')}bias": torch.zeros(tensors[key].shape[0])
            for key in weights
            if tensors[key].dim() == 2
        }
    fields = expressed_fields(config, len(structure(plain).blocks))
    return Expression(fields | {"phm_layer": False}, tensors)
