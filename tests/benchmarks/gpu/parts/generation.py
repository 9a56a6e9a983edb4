"""Answers written with the cache equal answers written step by step without it, in float32, for every method.

Prompt methods most of all: they act once, and the cache must hold what they put in front. In half precision both ways
round differently, so there only the share of equal tokens is told.
"""

from __future__ import annotations

from typing import Any

import torch
from setting import BASE, Setting, require
from torch import Tensor, nn

from peftcli import adapters
from peftcli.adapters.base import InitContext
from peftcli.adapters.prompts import PromptAdapter
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError
from peftcli.models.device import before_start
from peftcli.models.load import load_model
from peftcli.models.source import resolve_base
from peftcli.tasks.registry import task
from peftcli.testing.sections import SECTIONS

WORTH = 66
SECONDS = 120
NEW_TOKENS = {True: 4, False: 16}


def run(setting: Setting) -> str:
    before_start(setting.device)
    source = resolve_base(BASE, folder=setting.folder)
    models = {
        dtype: load_model(source, dtype=dtype, device=setting.device)
        for dtype in ((torch.float32, torch.bfloat16) if setting.on_gpu else (torch.float32,))
    }
    labels, faults = [], []
    for label, section in SECTIONS.items():
        for dtype, model in models.items():
            try:
                _attach(model, section)
            except AdapterError as error:
                setting.note(does_not_fit={**setting.figures.get("does_not_fit", {}), label: str(error)[:200]})
                continue
            is_prompt = isinstance(adapter_of(model), PromptAdapter)
            if is_prompt or not setting.tiny:
                share = _share_equal(model, NEW_TOKENS[setting.tiny])
                name = str(dtype).removeprefix("torch.")
                setting.note(equal={**setting.figures.get("equal", {}), f"{label} {name}": share})
                if dtype == torch.float32:
                    labels.append(label)
                    faults += [] if share == 1.0 else [f"{label} {share:.2f}"]
            adapters.detach(model)
    require(not faults, f"cached and stepwise answers differ: {', '.join(faults)}")
    require(len(labels) >= 5, f"only {len(labels)} sections were tried")
    return f"{len(labels)} sections: the same {NEW_TOKENS[setting.tiny]} tokens with the cache and step by step"


def _attach(model: nn.Module, section: Any) -> None:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 1600, (2, 12), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "weights": torch.ones(ids.shape)}
    context = InitContext(
        generator,
        tokenizer=None,
        batches=lambda: [{name: tensor.to(device) for name, tensor in batch.items()}],
        loss=lambda found, given: task("causal-lm").loss(found, given).total,
    )
    adapters.attach(model, dict(section), context=context)
    with torch.no_grad():
        for parameter in adapter_of(model).trainable_parameters().values():
            parameter.add_(torch.empty(parameter.shape).normal_(0.0, 0.01, generator=generator).to(device))


@torch.no_grad()
def _share_equal(model: nn.Module, new_tokens: int) -> float:
    device = next(model.parameters()).device
    ids = torch.randint(4, 1600, (3, 10), generator=torch.Generator().manual_seed(2)).to(device)
    mask = torch.ones_like(ids)
    mask[1, :4] = mask[2, :7] = 0  # padded on the left
    settings = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def written(use_cache: bool) -> Tensor:
        found: Tensor = model.generate(ids, attention_mask=mask, use_cache=use_cache, **settings)  # type: ignore[operator]
        return found[:, ids.shape[1] :]

    return float((written(True) == written(False)).float().mean())
