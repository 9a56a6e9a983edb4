"""Low-rank updates of a plain model as a LoRA of scale one: its section and the tensors of its file."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.base import FILE_PREFIX
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.methods.lora.config import LoraConfig
from peftcli.adapters.pairs import Pairs
from peftcli.models.structure import input_embedding, output_embedding


def section_of(pairs: Pairs) -> dict[str, Any]:
    """The usual rank as `r`, the others in patterns; lora_alpha follows, so that each scale is one."""
    ranks = {path: len(a) for path, (a, _) in pairs.updates.items()}
    # the commonest rank as `r` leaves the fewest patterns
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {path: rank for path, rank in ranks.items() if rank != usual}
    return {
        "type": LoraConfig.name,
        "r": usual,
        "lora_alpha": usual,
        "target_modules": sorted(ranks),
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "lora_bias": bool(pairs.biases),
        "modules_to_save": list(pairs.whole) or None,
        "ensure_weight_tying": pairs.tied,
    }


def tensors_of(model: nn.Module, pairs: Pairs) -> dict[str, Tensor]:
    """By the keys of the file. Where one layer has a bias of B each has one, zero where nothing changed."""
    modules = dict(named_base_modules(model))
    found: dict[str, Tensor] = {}
    for path, (a, b) in pairs.updates.items():
        key = f"{FILE_PREFIX}{path}"
        if isinstance(modules[path], nn.Embedding):
            found |= {f"{key}.lora_embedding_A": a, f"{key}.lora_embedding_B": b}
            continue
        found |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        if pairs.biases:
            # the format has `lora_bias` for all or none
            found[f"{key}.lora_B.bias"] = pairs.biases.get(path, torch.zeros(b.shape[0]))
    for path in pairs.whole:
        for name, parameter in modules[path].named_parameters():
            found[f"{FILE_PREFIX}{path}.{name}"] = parameter.detach().float()
    return found | _tied_head(model, pairs) if pairs.tied else found


def _tied_head(model: nn.Module, pairs: Pairs) -> dict[str, Tensor]:
    """The head's pair, which the format writes beside the embedding's: its transposes."""
    paths = {id(module): path for path, module in named_base_modules(model)}
    embedding, head = input_embedding(model), output_embedding(model)
    path = paths.get(id(embedding), "")
    if path not in pairs.updates or head is None:
        return {}
    a, b = pairs.updates[path]
    key = f"{FILE_PREFIX}{paths[id(head)]}"
    return {f"{key}.lora_A.weight": b.T.contiguous(), f"{key}.lora_B.weight": a.T.contiguous()}
