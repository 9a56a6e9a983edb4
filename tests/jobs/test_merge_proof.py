"""A right merge is proven whatever the size of the update, the type of the base and the kind of model."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_case import (
    LORA,
    SMALL,
    VOCAB,
    build_tokenizer,
    family,
    llama,
    random_model,
    types_of,
    write_adapter,
    write_base,
)
from torch import nn
from transformers import AutoModelForCausalLM

from peftcli import adapters
from peftcli.errors import CheckFailed, ModelError
from peftcli.jobs.merge import merge_adapter, merge_text
from peftcli.jobs.merge_answers import max_difference, require_finite, surviving_share
from peftcli.jobs.merge_prompts import RANDOM_ROWS, encode_prompts, meeting_rows
from peftcli.jobs.merge_witness import adapted_sites

ROUTED: dict[str, Any] = {
    **SMALL, "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 16, "kv_lora_rank": 8,
    "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
}  # fmt: skip


def half_with_precise_routers() -> nn.Module:
    """DeepSeek-V3 in bfloat16, the biases of its routers in float32 with digits that bfloat16 has no room for."""
    model = random_model("DeepseekV3ForCausalLM", "DeepseekV3Config", ROUTED, torch.bfloat16)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.data = torch.linspace(0.1, 0.7, buffer.numel()) + 1e-4
    return model


@pytest.mark.parametrize("size", [0.002, 0.02, 0.5])
def test_large_and_small_updates_of_a_half_base(size: float, half_base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", half_base, LORA, size=size)
    found = merge_adapter(adapter, output=tmp_path / "m")
    assert found.dtype == "bfloat16"
    assert set(types_of(tmp_path / "m").values()) == {"BF16"}
    assert found.update_share is not None
    assert found.update_share > 0.99
    assert found.logits_share is not None
    assert found.logits_share > 0.97
    assert found.max_difference <= found.tolerance
    assert found.positions < 1.0 or found.tolerance < found.adapter_effect
    assert "of its effect on the logits: " in merge_text(found)


def test_every_tensor_keeps_the_type_of_the_base(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", half_with_precise_routers())
    section = {"type": "lora", "r": 4, "target_modules": ["o_proj", "down_proj"]}
    adapter = write_adapter(tmp_path / "a", base, section, size=0.05)
    found = merge_adapter(adapter, output=tmp_path / "m")
    types = types_of(base)
    assert set(types.values()) == {"BF16", "F32"}
    assert types_of(tmp_path / "m") == types
    assert found.agreement > 0.95
    narrow = merge_adapter(adapter, output=tmp_path / "half", dtype="float16")
    expected = {name: "F32" if kind == "F32" else "F16" for name, kind in types.items()}
    assert (types_of(tmp_path / "half"), narrow.dtype) == (expected, "float16")


def test_a_narrower_type_keeps_what_the_family_keeps_precise(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", half_with_precise_routers().float())
    adapter = write_adapter(tmp_path / "a", base, {"type": "lora", "r": 4, "target_modules": ["o_proj"]}, size=0.05)
    merge_adapter(adapter, output=tmp_path / "m", dtype="bfloat16")
    half = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    precise = {name for name, tensor in half.state_dict().items() if tensor.dtype == torch.float32}
    assert any("e_score_correction_bias" in name for name in precise)
    assert {name for name, kind in types_of(tmp_path / "m").items() if kind == "F32"} == precise
    assert set(types_of(tmp_path / "m").values()) == {"F32", "BF16"}


def test_a_half_model_that_overflows(tmp_path: Path) -> None:
    """Every weight is finite in float16; a product of them is not."""
    model = llama(torch.bfloat16)
    with torch.no_grad():
        model.get_parameter("lm_head.weight").mul_(2e5)
    base = write_base(tmp_path / "base", model)
    adapter = write_adapter(tmp_path / "a", base, LORA)
    with pytest.raises(CheckFailed) as caught:
        merge_adapter(adapter, output=tmp_path / "m", dtype="float16")
    assert "the merged model in float16 are not finite" in caught.value.render()
    assert not (tmp_path / "m").exists()


def test_a_weight_that_overflows_the_type(tmp_path: Path) -> None:
    model = llama(torch.bfloat16)
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight")[263] = 1e5  # no prompt holds this token
    base = write_base(tmp_path / "base", model)
    adapter = write_adapter(tmp_path / "a", base, LORA)
    with pytest.raises(CheckFailed) as caught:
        merge_adapter(adapter, output=tmp_path / "m", dtype="float16")
    assert "model.embed_tokens.weight (float16)" in caught.value.render()


def test_no_prompt_is_skipped_when_one_is_not_a_number() -> None:
    good, bad = torch.zeros(2, 3), torch.tensor([[0.0, float("nan"), 0.0]])
    assert max_difference([good, bad], [good, good[:1]]) == math.inf
    with pytest.raises(CheckFailed, match="could not be proven") as caught:
        require_finite([good, bad], "the merged model")
    assert "1 of 2 prompts (prompt 2 first)" in caught.value.render()
    ruled_out = torch.tensor([[0.0, -math.inf, 0.0]])
    require_finite([ruled_out], "the merged model", [ruled_out])
    with pytest.raises(CheckFailed):
        require_finite([ruled_out], "the merged model", [good[:1]])


def test_the_share_of_an_effect() -> None:
    torch.manual_seed(0)
    plain, effect = torch.randn(50, 8), torch.randn(50, 8)
    for kept, share in ((1.0, 1.0), (0.055, 0.055), (1.3, 0.7), (0.0, 0.0), (-1.0, -1.0)):
        found = surviving_share([plain + effect], [plain], [plain + kept * effect], [plain], 1e-6)
        assert found == pytest.approx(share, abs=1e-6)
    assert surviving_share([plain], [plain], [plain], [plain], 1e-6) is None


def test_prompts_meet_what_was_changed(llama_base: Path, tmp_path: Path) -> None:
    section = {"type": "lora", "r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [262, 263, 5]}
    model = llama()
    adapters.attach(model, section, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    texts = encode_prompts(build_tokenizer(), ["One text."], "cpu")
    rows, unmet = meeting_rows(model, adapted_sites(model), texts)
    assert {262, 263, 5} <= {token for row in rows for token in row.flatten().tolist()}
    assert unmet == []


def test_prompts_reach_every_position_that_was_trained() -> None:
    model = family("gpt2")
    adapters.attach(model, {"type": "lora", "r": 4, "target_modules": ["c_attn"], "modules_to_save": ["wpe"]}, seed=0)
    texts = encode_prompts(build_tokenizer(), ["One text."], "cpu")
    rows, _ = meeting_rows(model, adapted_sites(model), texts)
    assert max(row.shape[1] for row in rows) == 128


def test_prompts_reach_every_expert() -> None:
    """Each of four experts runs though the one text's few tokens choose two or three of them."""
    model = family("mixtral")
    section = {"type": "lora", "r": 2, "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}
    adapters.attach(model, section, seed=0)
    met: set[int] = set()
    experts = model.get_submodule("model.layers.1.mlp.experts.base_layer")
    experts.register_forward_pre_hook(lambda module, args: met.update(args[1].flatten().tolist()))
    _, unmet = meeting_rows(model, adapted_sites(model), [torch.tensor([[3]])])
    assert (met, unmet) == ({0, 1, 2, 3}, [])


def test_what_no_prompt_reaches_is_said(llama_base: Path, tmp_path: Path) -> None:
    rows, unmet = meeting_rows(llama(), {"lost": nn.Linear(2, 2)}, [torch.tensor([[3]])])
    assert (len(rows), unmet) == (1 + RANDOM_ROWS, ["lost"])
    adapter = write_adapter(tmp_path / "a", llama_base, LORA)
    found = replace(merge_adapter(adapter, output=tmp_path / "m"), unmet=("lost",))
    assert "no prompt reached lost: proven on the weights alone" in merge_text(found)


XGLM = {"vocab_size": VOCAB, "d_model": 32, "ffn_dim": 48, "num_layers": 1, "attention_heads": 4,
        "max_position_embeddings": 128}  # fmt: skip
OPENAI = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 128}


def widest_arithmetic(model: Any) -> str:
    try:
        copy.deepcopy(model).double()(torch.tensor([[3, 4]]))
    except RuntimeError:
        return "float32"
    return "float64"


@pytest.mark.parametrize(
    ("kind", "config", "fields", "arithmetic"),
    [
        ("XGLMForCausalLM", "XGLMConfig", XGLM, None),
        ("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", OPENAI, "float64"),
        ("MixtralForCausalLM", "MixtralConfig", {**SMALL, "num_local_experts": 4}, "float32"),
    ],
)
def test_families_that_do_not_compute_in_float64(
    kind: str, config: str, fields: dict[str, Any], arithmetic: str | None, tmp_path: Path
) -> None:
    """Tables in float32 (XGLM, in some releases), grouped products (Mixtral), blocks that return a list (OpenAI GPT)."""
    model = random_model(kind, config, fields)
    arithmetic = arithmetic or widest_arithmetic(model)
    base = write_base(tmp_path / "base", model)
    adapter = write_adapter(tmp_path / "a", base, LORA)
    found = merge_adapter(adapter, output=tmp_path / "m")
    assert (found.arithmetic, found.agreement) == (arithmetic, 1.0)
    assert found.max_difference <= found.tolerance < 0.01 * found.adapter_effect


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoders(name: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", family(name))
    adapter = write_adapter(tmp_path / "a", base, LORA, auto_class="AutoModelForSeq2SeqLM")
    found = merge_adapter(adapter, output=tmp_path / "m")
    assert found.agreement == 1.0
    assert found.logits_share == pytest.approx(1.0, abs=1e-3)


def test_a_classifier(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", family("bert"))
    section = {**LORA, "modules_to_save": ["classifier"]}
    adapter = write_adapter(tmp_path / "a", base, section, auto_class="AutoModelForSequenceClassification")
    found = merge_adapter(adapter, output=tmp_path / "m")
    assert found.classifies
    assert found.agreement == 1.0
    assert "same most likely label at 100.0 % of positions" in merge_text(found)


def test_more_tokens_than_rows(llama_base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", llama_base, LORA)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"<new {number}>" for number in range(20)])
    tokenizer.save_pretrained(adapter)
    with pytest.raises(ModelError, match="beside the adapter has 280 tokens, the base embeds 264"):
        merge_adapter(adapter, output=tmp_path / "m")
