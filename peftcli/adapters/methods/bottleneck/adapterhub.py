"""AdapterHub's bottleneck adapters (seq_bn, double_seq_bn, par_bn) in our terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from peftcli.adapters.foreign import ForeignFolder, Translation
from peftcli.adapters.foreign_sublayers import config_of, is_sublayers, shared_fields, sublayer_tensors
from peftcli.adapters.methods.bottleneck.config import BottleneckConfig


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
