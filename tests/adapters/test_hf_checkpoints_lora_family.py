"""Checkpoints written by the reference library: read exactly, merged, and written again byte for byte."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from peftcli import adapters
from peftcli.adapters.registry import config_class, own_method_names
from peftcli.adapters.surgery import adapter_of
from peftcli.adapters.target_config import TargetedConfig
from peftcli.adapters.tensor_file import read_header
from peftcli.errors import AdapterError

GROUND = os.environ.get("PEFTCLI_GROUND")
pytestmark = pytest.mark.skipif(GROUND is None, reason="PEFTCLI_GROUND names no measuring ground")

FAMILY = {
    config.peft_type
    for config in map(config_class, own_method_names())
    if issubclass(config, TargetedConfig) and config.kind == "layers"
}
"""What adapts linear layers."""
REFUSED = {"lora_alora": "aLoRA", "lora_bdlora": "BD-LoRA", "lora_kasa": "KaSA"}
SHIFTED = {"lora_pissa", "lora_olora"}
PLAIN = {"lora_velora"}
"""Written again as plain LoRA: what the file has beyond it changes training only."""
OF_NO_LANGUAGE_MODEL = "conv2d_"
LOGIT_TOLERANCE = 1e-5
MERGE_TOLERANCE = 1e-4


def folder(case: str) -> Path:
    return Path(GROUND or "", "hf_checkpoints", case)


def all_cases() -> list[str]:
    if GROUND is None:
        return []
    configs = sorted(Path(GROUND, "hf_checkpoints").glob("*/adapter_config.json"))
    return [path.parent.name for path in configs if json.loads(path.read_text())["peft_type"] in FAMILY]


def with_logits() -> list[str]:
    return [case for case in all_cases() if (folder(case) / "golden_io.safetensors").exists() and case not in REFUSED]


def tiny(kind: str, **changes: Any) -> nn.Module:
    """A random base of the shape that the cases without logits were written on."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    if kind == "llama":
        return LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes)).eval()
    if kind == "mixtral":
        sizes |= {"intermediate_size": 96, "num_hidden_layers": 1, "num_local_experts": 4}
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes)).eval()
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64)
        return transformers.GPT2LMHeadModel(config).eval()
    t5 = transformers.T5Config(vocab_size=128, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    return transformers.T5ForConditionalGeneration(t5).eval()


OTHER_BASES: dict[str, Callable[[], nn.Module]] = {
    "ia3_gpt2": lambda: tiny("gpt2"),
    "ia3_t5": lambda: tiny("t5"),
    "lora_bias_all": lambda: tiny("llama", attention_bias=True),
    "lora_bias_lora_only": lambda: tiny("llama", attention_bias=True),
    "lora_gpt2_conv1d": lambda: tiny("gpt2"),
    "lora_target_parameters_mixtral": lambda: tiny("mixtral"),
    "lora_tied_mts": lambda: tiny("llama", tie_word_embeddings=True),
    "lora_tied_noensure": lambda: tiny("llama", tie_word_embeddings=True),
}


def base_for(case: str) -> nn.Module:
    if case not in OTHER_BASES:
        model = LlamaForCausalLM.from_pretrained(folder("base_tiny_llama")).eval()
        return model.to(torch.bfloat16) if "bf16" in case else model
    model = OTHER_BASES[case]()
    # where the file carries a copy of the base's embedding, the base must have it
    copies = load_file(folder(case) / "adapter_model.safetensors")
    with torch.no_grad():
        for key, value in copies.items():
            if key.endswith("embed_tokens.base_layer.weight"):
                model.get_input_embeddings().weight.copy_(value)
    return model


def order_free(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: order_free(item) for key, item in value.items() if key != "peft_version"}
    return sorted(map(order_free, value), key=repr) if isinstance(value, list) else value


def assert_written_again(model: nn.Module, case: str, scratch: Path) -> None:
    adapters.save(model, scratch)
    ours, theirs = (path / "adapter_config.json" for path in (scratch, folder(case)))
    name = "adapter_model.safetensors"
    if case in SHIFTED:
        assert json.loads(ours.read_text())["init_lora_weights"] is True
        return
    if case in PLAIN:
        tensors, whole = load_file(scratch / name), load_file(folder(case) / name)
        assert {key for key in whole if "lora_velora" not in key} == tensors.keys()
        assert all(torch.equal(tensor, whole[key]) for key, tensor in tensors.items())
        return
    assert (scratch / name).read_bytes() == (folder(case) / name).read_bytes()
    assert order_free(json.loads(ours.read_text())) == order_free(json.loads(theirs.read_text()))


@pytest.mark.parametrize("case", with_logits() or ["none"])
def test_logits_merge_and_bytes(case: str, tmp_path: Path) -> None:
    golden = load_file(folder(case) / "golden_io.safetensors")
    inputs = {name: golden[name] for name in ("input_ids", "attention_mask")}
    real = golden["attention_mask"].bool()
    model = base_for(case)
    adapters.load(model, folder(case))

    def logits() -> Tensor:
        with torch.no_grad():
            found: Tensor = model(**inputs).logits.float()
        return found[real]

    tuned = logits()
    assert (tuned - golden["logits"].float()[real]).abs().max() < LOGIT_TOLERANCE
    assert_written_again(model, case, tmp_path / "ours")
    if case in SHIFTED:
        plain = base_for(case)
        adapters.load(plain, tmp_path / "ours")
        with torch.no_grad():
            assert (plain(**inputs).logits[real] - tuned).abs().max() < LOGIT_TOLERANCE
    if "bf16" not in case:
        adapters.merge(model)
        assert (logits() - tuned).abs().max() < MERGE_TOLERANCE


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in all_cases()
        if case not in with_logits() and case not in REFUSED and not case.startswith(OF_NO_LANGUAGE_MODEL)
        if case != "lora_mha"
    ]
    or ["none"],
)
def test_keys_shapes_and_bytes_without_logits(case: str, tmp_path: Path) -> None:
    model = base_for(case)
    summary = adapters.load(model, folder(case), trainable=True)
    assert summary.tensors > 0
    assert_written_again(model, case, tmp_path)
    keys = {entry.key for entry in adapter_of(model).entries() if not entry.optional}
    assert keys <= set(read_header(folder(case) / "adapter_model.safetensors"))


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_variants_that_are_not_here_are_refused_by_name(case: str) -> None:
    with pytest.raises(AdapterError, match=REFUSED[case]):
        adapters.load(base_for(case), folder(case))


def test_the_table_sees_the_ground() -> None:
    assert len(with_logits()) >= 23
