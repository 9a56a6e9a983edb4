"""What takes no part in an answer to text is left out of the preset, told, and refused where only that is named."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from peftcli import adapters
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError
from peftcli.models.trace import NEVER_CALLED, NO_GRADIENT, participation

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
}


def bart() -> nn.Module:
    config = transformers.BartConfig(
        vocab_size=96, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.BartForCausalLM(config)


def gemma_with_eyes() -> nn.Module:
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Gemma3Config(
        text_config={**SIZES, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        image_token_index=90, boi_token_index=91, eoi_token_index=92, mm_tokens_per_image=1,
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(config)


def mixture() -> nn.Module:
    config = transformers.Qwen2MoeConfig(
        **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, shared_expert_intermediate_size=48
    )
    return transformers.Qwen2MoeForCausalLM(config)


def sharing_keys() -> nn.Module:
    kinds = ["sliding_attention", "full_attention"] * 2
    config = transformers.Gemma3nTextConfig(
        **{**SIZES, "num_hidden_layers": 4, "intermediate_size": [48] * 4},
        layer_types=kinds, num_kv_shared_layers=2, hidden_size_per_layer_input=16, vocab_size_per_layer_input=96,
        laurel_rank=16, activation_sparsity_pattern=[0.0] * 4, altup_num_inputs=2,
    )  # fmt: skip
    return transformers.Gemma3nForCausalLM(config)


CASES: list[tuple[Callable[[], nn.Module], str, str, str]] = [
    (bart, "encoder_attn", NEVER_CALLED, "self_attn"),
    (gemma_with_eyes, "vision_tower", NEVER_CALLED, "language_model"),
    (mixture, "shared_expert_gate", "narrower", "shared_expert.up_proj"),
    (sharing_keys, "altup.modality_router", "narrower", "q_proj"),
]


@pytest.mark.parametrize(("make", "left", "reason", "kept"), CASES, ids=[case[1] for case in CASES])
def test_the_preset_trains_on_text(make: Callable[[], nn.Module], left: str, reason: str, kept: str) -> None:
    model = make().train()
    summary = adapters.attach(model, {"type": "lora", "r": 4})
    found = adapter_of(model).left_out
    assert any(left in path and reason in why for path, why in found.items())
    assert not any(left in path for path in summary.targets)
    assert any(kept in path for path in summary.targets)
    assert any(left in note for note in summary.notes), "it is told"
    _disturb(model)
    ids = torch.randint(3, 90, (2, 9))
    logits_of(model, ids).pow(2).sum().backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle, "every trained tensor gets a gradient"


def logits_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits of whole rows; older releases want to be told in training that no token is of an image."""
    takes = inspect.signature(model.forward).parameters
    more = {"token_type_ids": torch.zeros_like(ids)} if "token_type_ids" in takes else {}
    answer: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **more).logits
    return answer


def _disturb(model: nn.Module) -> None:
    """Start values that are zero hide gradients behind them."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.1)


def test_a_pooler_is_without_effect() -> None:
    config = transformers.BigBirdConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, is_decoder=True
    )
    seen = participation(transformers.BigBirdForCausalLM(config))
    assert seen.layer("bert.pooler") == NO_GRADIENT
    assert seen.layer("bert.encoder.layer.0.attention.self.query") is None


def test_a_dense_model_uses_everything() -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    seen = participation(model)
    assert seen.known
    assert not seen.idle
    assert not seen.passed_over
    assert not adapters.attach(model, {"type": "lora", "r": 4}).notes


def test_what_cannot_be_run_without_weights_is_left_as_it_is() -> None:
    """Experts whose product fails on the meta device hide nothing outside of them, and nothing is said of them."""
    seen = participation(mixture())
    assert not any("experts" in name for name in seen.idle)
    assert participation(nn.Sequential(nn.Linear(4, 4))).idle == {}


def test_names_of_idle_layers_alone_are_refused() -> None:
    with pytest.raises(AdapterError, match=r"encoder_attn\.q_proj.*not called for text"):
        adapters.attach(bart(), {"type": "lora", "r": 4, "target_modules": ["self_attn.q_proj", "encoder_attn.q_proj"]})


def test_a_name_that_both_parts_have_is_the_text_part(tmp_path: Path) -> None:
    """`q_proj` of a vision-language model; the file names exactly what was trained, so that any reader finds it."""
    torch.manual_seed(0)
    model = gemma_with_eyes().eval()
    summary = adapters.attach(model, {"type": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]})
    assert summary.targets
    assert all("language_model" in path for path in summary.targets)
    _disturb(model)
    adapters.save(model, tmp_path / "adapter")
    ids = torch.randint(3, 90, (1, 7))
    expected = model(input_ids=ids).logits
    adapters.detach(model)
    adapters.load(model, tmp_path / "adapter")
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_a_rank_beyond_every_layer_is_still_an_error() -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    with pytest.raises(AdapterError, match="does not fit"):
        adapters.attach(model, {"type": "lora", "r": 64})
