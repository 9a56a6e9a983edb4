"""Training traces of the reference library: the same start, the same batches, the same losses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    BertForSequenceClassification,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    T5ForConditionalGeneration,
)

from peftcli import adapters
from peftcli.adapters.registry import config_class, own_method_names
from peftcli.adapters.surgery import adapter_of
from peftcli.adapters.target_config import TargetedConfig
from peftcli.errors import MergeError

GROUND = os.environ.get("PEFTCLI_GROUND")
pytestmark = pytest.mark.skipif(GROUND is None, reason="PEFTCLI_GROUND names no measuring ground")

CLASSES = {
    "base_llama": LlamaForCausalLM,
    "base_bert": BertForSequenceClassification,
    "base_gpt2": GPT2LMHeadModel,
    "base_t5": T5ForConditionalGeneration,
}
FAMILY = {
    config.peft_type
    for config in map(config_class, own_method_names())
    if issubclass(config, TargetedConfig) and config.kind == "layers"
}
"""What adapts linear layers."""
LOSS_TOLERANCE = 1e-5
LOGIT_TOLERANCE = 1e-4


def golden_folder() -> Path:
    return Path(GROUND or "", "golden")


def cases() -> list[str]:
    if GROUND is None:
        return ["none"]
    found = []
    for trace in sorted(golden_folder().glob("*/trace.json")):
        config = trace.parent / "init" / "adapter_config.json"
        if config.is_file() and json.loads(config.read_text()).get("peft_type") in FAMILY:
            found.append(trace.parent.name)
    return found


def load_base(name: str) -> nn.Module:
    attention = {} if name == "base_t5" else {"attn_implementation": "eager"}
    return CLASSES[name].from_pretrained(golden_folder() / name, **attention).eval()


def batch(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{prefix}.")}


def evaluated(model: nn.Module, base: str, tensors: dict[str, Tensor]) -> Tensor:
    inputs = batch(tensors, "eval")
    if base != "base_t5":
        inputs.pop("labels")
    with torch.no_grad():
        logits: Tensor = model(**inputs).logits.float()
    return logits[:1, -8:] if logits.dim() == 3 else logits


def started(case: str, trace: dict[str, Any]) -> nn.Module:
    """The base with the adapter at the trace's start."""
    folder = golden_folder() / case / "init"
    model = load_base(trace["base"])
    ratio = trace["optimizer_args"].get("loraplus_lr_ratio")
    if ratio is None:
        adapters.load(model, folder, trainable=True)
        return model
    # the ratio is not in the reference's file: attach with it, then take the start
    config = json.loads((folder / "adapter_config.json").read_text())
    section = {key: config[key] for key in ("r", "lora_alpha", "target_modules")}
    adapters.attach(model, {"type": "lora", **section, "loraplus_lr_ratio": ratio})
    start = load_file(folder / "adapter_model.safetensors")
    for entry in adapter_of(model).entries():
        entry.load(start.pop(entry.key))
    assert not start
    return model


@pytest.mark.parametrize("case", cases())
def test_training_follows_the_trace(case: str, tmp_path: Path) -> None:
    trace = json.loads((golden_folder() / case / "trace.json").read_text())
    base = trace["base"]
    tensors = load_file(golden_folder() / base / "batches.safetensors")
    final = load_file(golden_folder() / case / "logits.safetensors")["final"]
    model = started(case, trace)
    adapter = adapter_of(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in parameters) == trace["trainable_params"]
    wanted = trace["optimizer_args"]
    settings = {"betas": tuple(wanted.get("betas", (0.9, 0.999))), "eps": wanted.get("eps", 1e-8)}
    groups = adapter.parameter_groups(wanted["lr"], wanted["weight_decay"])
    optimizer = torch.optim.AdamW(groups, **settings)
    for step, expected in enumerate(trace["losses"]):
        loss = model(**batch(tensors, f"train{step % 5}")).loss
        extra = adapter.extra_loss()
        loss = loss if extra is None else loss + extra
        assert abs(loss.item() - expected) < LOSS_TOLERANCE, f"step {step}"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        adapter.after_step(step + 1, trace["steps"])
    tuned = evaluated(model, base, tensors)
    assert (tuned - final).abs().max() < LOGIT_TOLERANCE

    adapters.save(model, tmp_path / "adapter")
    again = load_base(base)
    adapters.load(again, tmp_path / "adapter")
    assert (evaluated(again, base, tensors) - final).abs().max() < LOGIT_TOLERANCE
    if getattr(adapter.config, "lora_bias", False):
        with pytest.raises(MergeError, match="bias"):  # this base has no bias to hold it
            adapters.merge(model)
        return
    adapters.merge(model)
    assert (evaluated(model, base, tensors) - tuned).abs().max() < LOGIT_TOLERANCE


def test_every_case_of_the_family_is_found() -> None:
    assert len(cases()) >= 20
