"""Hugging Face PEFT reads what we write: no warning about keys, the same logits. Skipped where it is not installed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftcli import adapters
from peftcli.adapters.base import InitContext
from peftcli.adapters.surgery import adapter_of

peft = pytest.importorskip("peft", reason="peft is not installed (pip install peft==0.21.2)")

SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "lora": {"type": "lora"},
    "rslora with all biases": {
        "type": "lora",
        "r": 4,
        "bias": "all",
        "use_rslora": True,
        "target_modules": ["q_proj", "v_proj"],
    },
    "patterns that overlap": {
        "type": "lora",
        "r": 4,
        "rank_pattern": {"q_proj": 2, "layers.0.self_attn.q_proj": 6},
        "alpha_pattern": {"v_proj": 3.0},
    },
    "lora_bias": {"type": "lora", "r": 4, "lora_bias": True, "target_modules": ["q_proj"]},
    "embeddings": {"type": "lora", "r": 4, "target_modules": ["embed_tokens", "q_proj"]},
    "modules_to_save": {"type": "lora", "r": 4, "modules_to_save": ["lm_head"]},
    "prompt tuning": {"type": "prompt_tuning", "num_virtual_tokens": 5},
}


@pytest.mark.parametrize("name", list(SECTIONS))
def test_the_reference_loads_ours(name: str, ground: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = ground / "models" / "stories260K"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    context = InitContext(torch.Generator().manual_seed(0), tokenizer=tokenizer)
    adapters.attach(model, dict(SECTIONS[name]), context=context)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_of(model).trainable_parameters().values():
            parameter.add_(torch.empty(parameter.shape).normal_(0.0, 0.05, generator=generator))
    adapters.save(model, tmp_path, base_name=str(base))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path)).eval()
    assert not [str(w.message) for w in caught if "key" in str(w.message).lower()]
    inputs = tokenizer("Once upon a time there was a king", return_tensors="pt")
    with torch.no_grad():
        expected, found = model(**inputs).logits, theirs(**inputs).logits
    # the reference returns logits of virtual tokens too
    assert float((found[:, -expected.shape[1] :] - expected).abs().max()) <= 1e-6


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_biases_of_layers_that_are_saved_whole(bias: str, tmp_path: Path) -> None:
    """The reference writes the bias of such a layer up to three times, as trained, under another name, and as it was in
    the base. Ours has it once; each reads the other's file with the same logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def base() -> Any:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=32, attention_bias=True, **sizes)).eval()

    fields = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["o_proj"], "bias": bias}
    theirs = peft.get_peft_model(base(), peft.LoraConfig(task_type="CAUSAL_LM", **fields)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(each for each in theirs.parameters() if each.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = base()
    adapters.load(ours, tmp_path / "theirs")
    adapters.save(ours, tmp_path / "ours", base_name="base")
    ids = torch.arange(8).view(1, -1)
    with torch.no_grad():
        expected = theirs(ids).logits
        assert torch.equal(ours(ids).logits, expected)
        assert torch.equal(peft.PeftModel.from_pretrained(base(), str(tmp_path / "ours")).eval()(ids).logits, expected)
    written, found = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "ours"))
    assert all(torch.equal(written[key], value) for key, value in found.items())
    again = sorted(set(written) - set(found))
    assert all(".o_proj." in key and key.endswith("bias") for key in again)
    assert len(again) == (4 if bias == "all" else 0)
    for key in again:
        plain = key.replace(".modules_to_save", "").replace(".original_module", "")
        whole = base().get_parameter(plain.removeprefix("base_model.model."))
        assert torch.equal(written[key], found[plain] if "modules_to_save" in key else whole)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "embed_tokens"]], ids=["layers", "embeddings"])
@pytest.mark.parametrize("keeps", [True, False, "auto"])
def test_save_embedding_layers(keeps: bool | str, targets: list[str], tmp_path: Path) -> None:
    """Whether the reference puts the base's own tables into the file or not: the same logits, and our file has none."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def base() -> Any:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).eval()

    theirs = peft.get_peft_model(base(), peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(each for each in theirs.parameters() if each.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=keeps)
    tables = {key for key in load_file(tmp_path / "theirs" / "adapter_model.safetensors") if "lora" not in key}
    assert bool(tables) == (keeps is True or (keeps == "auto" and "embed_tokens" in targets)), tables
    ours, ids = base(), torch.arange(8).view(1, -1)
    adapters.load(ours, tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs(ids).logits
        assert torch.equal(ours(ids).logits, expected)
        # beside another base, the tables of the file are those that count, as the reference has it
        other = base()
        other.get_input_embeddings().weight.mul_(1.5)
        reread = peft.PeftModel.from_pretrained(copy.deepcopy(other), str(tmp_path / "theirs")).eval()(ids).logits
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapters.load(other, tmp_path / "theirs")
        assert float((other(ids).logits - reread).abs().max()) < 1e-6
    assert any("embed_tokens" in str(each.message) for each in caught) == bool(tables)
