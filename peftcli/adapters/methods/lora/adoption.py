"""What files of the reference hold that is not LoRA's own any more, or not at the same place."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from peftcli.adapters.adapter_file import AdapterFile
from peftcli.adapters.base import FILE_PREFIX
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.methods.lora.config import LoraConfig
from peftcli.adapters.methods.lora.former_experts import with_fused_experts
from peftcli.adapters.methods.lora.tokens import ROWS, token_sites
from peftcli.adapters.targets import names_path
from peftcli.errors import AdapterError
from peftcli.models.weights import is_adaptable

_OF_TRAINING = ("lora_velora_", "lora_monteclora_")
"""Beginnings of the names of tensors that the reference's VeLoRA and MonteCLoRA need while training."""


def adopted(model: nn.Module, config: LoraConfig, file: AdapterFile) -> tuple[LoraConfig, AdapterFile]:
    """The file as this method lays it out today. Raises `AdapterError` where that cannot be done."""
    # what only their training reads; A and B stand beside it as plain LoRA
    left_out = [key for key in file.header if any(f".{name}" in key for name in _OF_TRAINING)]
    file = file.without(left_out) if left_out else file
    file = _with_one_table(model, config, file)
    config, file = with_fused_experts(model, config, file)
    return _with_routers(model, config, file), file


def _with_one_table(model: nn.Module, config: LoraConfig, file: AdapterFile) -> AdapterFile:
    """Without the trained rows of a table that shares those of the input embedding: they are written twice."""
    if not config.trainable_token_indices:
        return file
    owners, shared = token_sites(model, config)
    keys = [f"{FILE_PREFIX}{path}.{ROWS}" for path in shared]
    keys = [key for key in keys if key in file.header]
    first = next((f"{FILE_PREFIX}{path}.{ROWS}" for path in owners if path not in shared), None)
    if not keys or first is None or first not in file.header:
        return file

    def read() -> dict[str, Tensor]:
        tensors = dict(file.read())
        for key in keys:
            # `pop`, for the second table takes its rows from the first
            if not torch.equal(tensors.pop(key), tensors[first]):
                raise AdapterError(f"`{key}` and `{first}` are rows of one table, and differ", fix="get it again")
        return tensors

    return replace(file.without(keys), read=read)


def _with_routers(model: nn.Module, config: LoraConfig, file: AdapterFile) -> LoraConfig:
    """Routers that were linear layers once and are modules with a weight now: named as weights."""
    modules = dict(named_base_modules(model))
    wanted = list(config.target_parameters or [])
    for key in file.header:
        path = key.removeprefix(FILE_PREFIX).removesuffix(".lora_A.weight")
        module = modules.get(path) if key.endswith(".lora_A.weight") else None
        if module is None or is_adaptable(module):
            continue
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() == 2 and not any(names_path(name, f"{path}.weight") for name in wanted):
            wanted.append(f"{path}.weight")
    return (
        config.model_copy(update={"target_parameters": wanted})
        if wanted != (config.target_parameters or [])
        else config
    )
