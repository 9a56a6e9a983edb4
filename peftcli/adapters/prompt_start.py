"""Where a prompt may start (ids drawn from the vocabulary or taken from a text), and the base's facts for its file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.base import InitContext
from peftcli.adapters.prompt_sites import PromptSites, is_encoder_decoder
from peftcli.data.asking import token_ids
from peftcli.errors import AdapterError
from peftcli.models.source import resolve_base
from peftcli.models.structure import hidden_size
from peftcli.models.tokenizer import load_tokenizer
from peftcli.models.weights import weight_view


def base_facts(model: nn.Module) -> dict[str, Any]:
    """What the reference writes about the base beside a prompt of input rows."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return {
        "token_dim": hidden_size(model),
        "num_transformer_submodules": 2 if is_encoder_decoder(model) else 1,
        "num_attention_heads": getattr(text, "num_attention_heads", None),
        "num_layers": getattr(text, "num_hidden_layers", None),
    }


def rows_of(sites: PromptSites, ids: Tensor) -> Tensor:
    """What the base's embedding makes of ids (n,): (n, width), float32."""
    with torch.no_grad():
        weight = weight_view(sites.embedding)
        rows: Tensor = sites.embedding(ids.to(weight.device)[None])[0]
    return rows.float()


def sampled_ids(count: int, vocabulary: int, generator: torch.Generator) -> Tensor:
    """`count` token ids, all different as long as the vocabulary lasts."""
    # rounded up; each round is a permutation, so no id comes twice before all have come once
    rounds = -(-count // vocabulary)
    return torch.cat([torch.randperm(vocabulary, generator=generator) for _ in range(rounds)])[:count]


def restart(encoder: nn.Module, generator: torch.Generator) -> None:
    """Draws every parameter again as its layer does by default, from `generator` alone, on the CPU."""
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.Embedding):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
            elif isinstance(module, nn.Linear | nn.LSTM):
                fan = module.in_features if isinstance(module, nn.Linear) else module.hidden_size
                for parameter in module.parameters(recurse=False):
                    bound = 1 / math.sqrt(fan)
                    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


def fit_output(layer: nn.Linear, features: Tensor, rows: Tensor) -> None:
    """Sets a last layer so that it maps `features` (n, hidden) to `rows` (n, width): least squares around their means."""
    # on the CPU, in float64: the same start on every device
    # around the means, so that the bias takes what all rows share
    features, rows = features.cpu().double(), rows.cpu().double()
    center, mean = features.mean(dim=0), rows.mean(dim=0)
    # `gelsd` takes matrices without full rank: there are mostly fewer rows than features
    weight = torch.linalg.lstsq(features - center, rows - mean, driver="gelsd").solution.T
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(mean - weight @ center)


def batch_ids(batches: Iterable[dict[str, Tensor]], count: int) -> Tensor:
    """The first `count` real token ids of the training rows, row after row, repeated where there are fewer."""
    found: list[Tensor] = []
    for batch in batches:
        ids = batch["input_ids"].cpu()
        mask = batch.get("attention_mask")
        found += [row for row in (ids.flatten() if mask is None else ids[mask.cpu().bool()]).split(count)]
        if sum(map(len, found)) >= count:
            break
    every = torch.cat(found)
    return every.repeat(-(-count // len(every)))[:count]


def text_ids(text: str, count: int, context: InitContext, model: nn.Module) -> Tensor:
    """The first `count` token ids of a text, repeated where it is shorter. `AdapterError` without a tokenizer."""
    tokenizer = context.tokenizer if context.tokenizer is not None else base_tokenizer(model)
    ids = token_ids(tokenizer, text)
    if not ids:
        raise AdapterError(f"the start text {text[:40]!r} has no tokens", fix="write a sentence about the task")
    return torch.tensor((ids * -(-count // len(ids)))[:count])


def base_tokenizer(model: nn.Module) -> Any:
    """The tokenizer of the base by the name that the model was loaded by."""
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    if not name:
        raise AdapterError(
            "a start from text needs the base's tokenizer, and the model does not say where it came from",
            fix="attach(model, ..., context=InitContext(generator, tokenizer=tokenizer))",
        )
    return load_tokenizer(resolve_base(name, folder=Path.cwd()))
