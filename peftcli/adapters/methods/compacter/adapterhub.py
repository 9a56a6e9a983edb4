"""AdapterHub's Compacter and Compacter++ in our terms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from peftcli.adapters.foreign import ForeignFolder, Translation
from peftcli.adapters.foreign_sublayers import config_of, is_sublayers, shared_fields, sublayer_tensors
from peftcli.adapters.methods.compacter.config import CompacterConfig
from peftcli.adapters.methods.compacter.method import RULE_KEY

_RULE = re.compile(r"(.*\.)?shared_parameters\.[^.]+\.phm_rule")


def reads(fields: Mapping[str, Any]) -> bool:
    """Whether a configuration describes adapter layers of Kronecker products."""
    return is_sublayers(fields) and bool(fields.get("phm_layer"))


def translate(model: nn.Module, foreign: ForeignFolder) -> Translation:
    """The adapter in our terms. Raises `AdapterError` for what is not here."""
    theirs = foreign.fields
    faults = []
    if theirs.get("factorized_phm_rule"):
        faults.append("n x n matrices as low-rank products (factorized_phm_rule)")
    if theirs.get("shared_W_phm"):
        faults.append("projections shared between layers (shared_W_phm)")
    foreign.refuse(faults)
    shared = bool(theirs.get("shared_phm_rule", True))
    fields = shared_fields(model, foreign) | {
        "bias": bool(theirs.get("phm_bias", True)),
        "phm_dim": theirs.get("phm_dim", 4),
        "phm_rank": theirs.get("phm_rank", 1) if theirs.get("factorized_phm_W", True) else None,
        "shared_phm_rule": shared,
        "learn_phm": bool(theirs.get("learn_phm", True)),
        "init_weights": "glorot",
    }
    config = config_of(CompacterConfig, foreign, fields)
    rules = [key for key in foreign.tensors if shared and _RULE.fullmatch(key)]
    tensors = sublayer_tensors(model, foreign, norm_before=config.ln_before, beside=rules)
    # each layer's copy of the shared rule is the same: one of them is read
    return Translation(config, tensors | {RULE_KEY: foreign.tensors[key] for key in rules[:1]})  # noqa: B035  one shared rule
