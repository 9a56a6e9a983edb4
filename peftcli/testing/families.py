"""Tiny models of each family, with random weights: small enough that a whole matrix of checks takes minutes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import nn

VOCAB = 96
"""Tokens that the tiny models of the contract suite know."""
_COMMON: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_ENCODER: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "num_labels": 3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "problem_type": "single_label_classification",
}


def _built(model: str, config: str, fields: dict[str, Any]) -> nn.Module:
    found: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**fields))
    return found


def _family(model: str, config: str, fields: dict[str, Any]) -> Callable[[], nn.Module]:
    return lambda: _built(model, config, fields)


def _causal(name: str, fields: dict[str, Any]) -> Callable[[], nn.Module]:
    return _family(f"{name}ForCausalLM", f"{name}Config", fields)


def _without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


# no dropout in any family: two passes must give the same numbers
_NO_DROPOUT_GPT2 = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_T5: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
_BART: dict[str, Any] = {
    **_COMMON,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 128,
    "dropout": 0.0,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_GPT2 = {**_COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **_NO_DROPOUT_GPT2}
_OPT = {
    **_without(_DECODER, "num_key_value_heads", "intermediate_size"),
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "dropout": 0.0,
}
_NEOX = {
    **_without(_DECODER, "num_key_value_heads"),
    "rotary_pct": 0.5,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}
_MOE = {"num_experts_per_tok": 2, "head_dim": 8}
_JAMBA = {
    **_DECODER,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "num_experts": 1,
    "num_experts_per_tok": 1,
    "use_mamba_kernels": False,
    "mamba_d_state": 8,
    "mamba_dt_rank": 4,
}
_QWEN3_NEXT = {
    **_DECODER,
    **_MOE,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_RWKV = {
    **_COMMON,
    "hidden_size": 32,
    "attention_hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "context_length": 128,
}
_DEEPSEEK = {
    **_DECODER,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
_GPT_OSS = {
    **_DECODER,
    **_MOE,
    "num_local_experts": 4,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}


FAMILIES: Mapping[str, Callable[[], nn.Module]] = {
    "llama": _causal("Llama", {**_DECODER, "tie_word_embeddings": False}),
    "mistral": _causal("Mistral", {**_DECODER, "sliding_window": 8}),
    "qwen": _causal("Qwen3", {**_DECODER, "head_dim": 8, "tie_word_embeddings": True}),
    "gemma": _causal("Gemma2", {**_DECODER, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}),
    "phi": _causal("Phi", {**_DECODER, "partial_rotary_factor": 0.5, "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
    "gpt2": _family("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "gpt_neox": _causal("GPTNeoX", _NEOX),
    "opt": _causal("OPT", _OPT),
    "bert": _family("BertForSequenceClassification", "BertConfig", _ENCODER),
    "roberta": _family("RobertaForSequenceClassification", "RobertaConfig", _ENCODER),
    "t5": _family("T5ForConditionalGeneration", "T5Config", _T5),
    "bart": _family("BartForConditionalGeneration", "BartConfig", _BART),
    "mixtral": _causal("Mixtral", {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
"""Family -> builder. `bert` and `roberta` classify, `t5` and `bart` have encoder and decoder, `mixtral` has experts."""

MEMORIES: Mapping[str, Callable[[], nn.Module]] = {
    "mamba": _causal("Mamba", {**_COMMON, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "jamba": _causal("Jamba", _JAMBA),
    "qwen3_next": _causal("Qwen3Next", _QWEN3_NEXT),
    "lfm2": _causal("Lfm2", {**_DECODER, "layer_types": ["conv", "full_attention"]}),
    "rwkv": _causal("Rwkv", _RWKV),
    "deepseek": _causal("DeepseekV3", _DEEPSEEK),
    "mistral_window": _causal("Mistral", {**_DECODER, "sliding_window": 8}),
    "gpt_oss": _causal("GptOss", _GPT_OSS),
}
"""Families whose memory ends (a sliding window), is a state, alone or beside attention, or is latent (DeepSeek).
RWKV reads its padding."""


def tiny_model(family: str, *, seed: int = 0, attention: str = "eager") -> nn.Module:
    """A fresh tiny model in evaluation mode, its weights drawn from `seed`, far enough from zero to show differences."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = {**FAMILIES, **MEMORIES}[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(3.0)
            # biases start at zero, where a mistake with them would not show
            elif not bool(parameter.any()):
                parameter.normal_(0.0, 0.05)
    # the caller's generator goes on as if nothing had been drawn
    torch.random.set_rng_state(state)
    model.config._attn_implementation = attention  # type: ignore[union-attr]
    return model.eval()


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model has an encoder and a decoder, so that it is given labels apart from its input."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def is_classifier(model: nn.Module) -> bool:
    """Whether the model gives one label for each row instead of tokens."""
    return type(model).__name__.endswith("ForSequenceClassification")


def with_every_expert(model: nn.Module) -> nn.Module:
    """The model, its routers sending each token to all experts: without the jumps of a choice among them."""
    for module in model.modules():
        if isinstance(getattr(module, "top_k", None), int) and isinstance(getattr(module, "num_experts", None), int):
            module.top_k = module.num_experts
    return model
