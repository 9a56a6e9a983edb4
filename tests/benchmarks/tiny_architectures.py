"""Every causal architecture of the installed transformers, tiny: its own default configuration with each size shrunk.

Sizes are told by the names that families give them. Lists that say something of each layer are cut to one layer of each
kind, so that a family that mixes kinds keeps them all. A configuration whose values must agree among themselves gets a
hint; most need none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

WIDTH = 64
HEADS = 4
HEAD = WIDTH // HEADS
LAYERS = 2
MOST_LAYERS = 4
VOCABULARY = 1664  # some families' tokenizers add tokens of their own to the built-in one's

_SIZES: tuple[tuple[str, int], ...] = (
    # the first pattern that is the whole name counts; a size is never made larger
    (r"(.*_)?vocab_size(_.*)?|vocab_size_.*", VOCABULARY),
    (r"hidden_size_per_layer_input|laurel_rank|.*lora_dim|hc_lowrank|ple_embed_dim", HEAD),
    (r"qk_rope_head_dim|qk_nope_head_dim|rotary_dim|qk_pos_emb_head_dim", HEAD // 2),
    (r"(.*_)?(key_value_heads|kv_heads)(_per_layer)?|n_head_kv|kv_n_heads|num_query_groups", HEADS // 2),
    (r"(.*_)?(num_.*_heads|n_heads?|num_heads|attention_heads)|n_mamba_heads", HEADS),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", 2 * HEAD),
    (r"(.*_)?(head_dim|d_kv|kv_channels|query_pre_attn_scalar|d_head|head_size)", HEAD),
    (r"(.*_)?(intermediate_size|d_ff|d_inner|n_inner|ffn_dim|ffn_hidden_size|inner_dim|d_ssm)", 2 * WIDTH),
    (r"feed_forward_size|.*channels?", 2 * WIDTH),
    (r"(.*_)?(hidden_size|d_model|n_embd|embed_dim|embed_proj_dim|embedding_size|lru_width|emb_dim)|dim", WIDTH),
    (r"(.*_)?(embedding_dim|hidden_dim)", WIDTH),
    (r"adapter_in_dim|adapter_out_dim|adapter_input_size|hidden_size_global", WIDTH),
    (r"(num|n)_(local_|routed_)?experts|moe_num_experts|num_routed_experts|zero_expert_num", 4),
    (r"num_experts_per_tok(en)?|top_?k|moe_top_?k|num_selected_experts|moe_k", 2),
    (r"n_group|num_expert_group|topk_group|n_shared_experts|num_shared_experts|(mamba_)?n_?groups", 1),
    (r".*lora_rank|adapter_rank", WIDTH // 2),
    (r"(.*_)?(state_size|d_state|dt_rank)", HEAD),
    (r"max_position_embeddings|n_positions|max_seq_len|n_ctx|max_sequence_length|context_length", 256),
    (r"sliding_window|attention_window_size|attention_chunk_size|window_size|local_window", 32),
)
_FILLED = {"head_dim": HEAD, "num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1}
"""Sizes that some configurations leave open and their models need."""
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LAYER_COUNTS = re.compile(r"(num_|n_)?(hidden_|encoder_|decoder_|enc_|dec_)?layers?|num_.*_layers|depth|num_blocks")
_NOT_COUNTS = ("num_kv_shared_layers", "num_dense_layers", "max_window_layers", "num_nextn_predict_layers")
_TOKEN = re.compile(r".*token_(id|index|idx)s?|.*_token(_id)?s?")

_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": HEAD,
    "indexer_budget": 128,
    "indexer_compress_ratio": 4,
}

_SHARED_ATTENTION = {
    "attention_hidden_size": 2 * WIDTH,
    "attention_head_dim": 2 * HEAD,
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "num_hidden_layers": 4,
}
HINTS: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {
        "vocab_size": VOCABULARY,
        **{f"{part}_config.vocab_size": VOCABULARY for part in ("encoder", "decoder", "patcher")},
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    },
    "bailing_hybrid": {"num_experts_per_token": 2},
    "dbrx": {"attn_config.rope_theta": 10000.0, "attn_config.clip_qkv": 8.0},
    "dory": {
        **dict.fromkeys(("n_input_layers", "n_recurrent_layers", "n_output_layers"), 2),
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp", "sliding_attention", "mlp"],
    },
    "falcon_h1": {"mamba_d_head": 32},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hrm_text": {"num_layers_per_stack": 1, "num_hidden_layers": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"head_dim": 32},
    "kimi_linear": {"num_experts_per_token": 2},
    "longcat_flash": {"head_dim": HEAD // 2},
    "qwen4_exp": {f"text_config.{name}": value for name, value in _INDEXER.items()},
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"vocab_size": VOCABULARY, "axial_pos_embds": False, "is_decoder": True, "hash_seed": 0},
    "xlm": {"causal": True},
    "xlstm": {"hidden_size": 2 * WIDTH, "embedding_dim": 2 * WIDTH},
    "xmod": {"default_language": "en_XX"},
    "zamba": _SHARED_ATTENTION,
    "zamba2": {**_SHARED_ATTENTION, "hybrid_layer_ids": [1, 3]},
}
"""Values that must agree with each other, by model type; a key with dots reaches into a part."""

_DRAFT = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 30}
ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "gemma4_assistant": {"text_config": {"model_type": "gemma4_text", **_DRAFT}},
}
"""Arguments of configurations that cannot be made without."""


def model_types() -> list[str]:
    """Model types that `AutoModelForCausalLM` maps, in the order of transformers."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> PretrainedConfig:
    """The configuration of a tiny model of this type, able to predict the next token where it can be."""
    default = CONFIG_MAPPING[model_type](**ARGUMENTS.get(model_type, {}))
    document = _shrunk(default.to_dict())
    if document.get("is_decoder") is False and not document.get("is_encoder_decoder"):
        document["is_decoder"] = True  # BERT and its kin see the answer otherwise
    for key, value in HINTS.get(model_type, {}).items():
        *parts, name = key.split(".")
        section = document
        for part in parts:
            section = section[part]
        section[name] = value
    return type(default).from_dict(document)


def _shrunk(document: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: _shrunk_value(str(name), value) for name, value in document.items()}
    counts = {name: value for name, value in document.items() if _LAYER_COUNTS.fullmatch(str(name)) and value}
    counts = {name: value for name, value in counts.items() if type(value) is int and name not in _NOT_COUNTS}
    for count in set(counts.values()):
        kept = _cut_layers(found, document, count)
        found |= {name: kept for name, value in counts.items() if value == count}
    found |= {name: size for name, size in _FILLED.items() if name in found and found[name] is None}
    found |= {name: index for name, index in _IDS.items() if name in found}
    if document.get("head_dim") is not None and document["head_dim"] == document.get("qk_rope_head_dim"):
        found["head_dim"] = found["qk_rope_head_dim"]  # latent attention rotates that part alone
    _agree_heads(found, document)
    return found


def _cut_layers(found: dict[str, Any], document: Mapping[str, Any], count: int) -> int:
    """One layer of each kind, `LAYERS` at least; what is listed for each layer is cut alike. Returns how many."""
    lists = {key: value for key, value in document.items() if isinstance(value, list) and len(value) == count > 1}
    given = document.get("per_layer_config")
    by_layer = {int(layer): value for layer, value in given.items()} if isinstance(given, dict) else {}
    kinds = [repr([value[layer] for value in lists.values()]) + repr(by_layer.get(layer)) for layer in range(count)]
    kept = _some_of_each(kinds)
    shared = document.get("num_kv_shared_layers")
    if shared == count:
        found["num_kv_shared_layers"] = len(kept)
    elif isinstance(shared, int) and 0 < shared < count:
        found["num_kv_shared_layers"] = len(kept)
        kept = kept * 2  # layers that take keys from those before need one of their kind there
    for key, value in lists.items():
        found[key] = [_shrunk_value(key, value[layer]) for layer in kept]
    if isinstance(given, dict):
        there = {layer: by_layer.get(old) for layer, old in enumerate(kept)}
        found["per_layer_config"] = {layer: _shrunk(value) for layer, value in there.items() if value}
    return len(kept)


def _some_of_each(kinds: Sequence[str]) -> list[int]:
    """Numbers of the layers to keep: the first of each kind, in order, then more from the start."""
    first = [kinds.index(kind) for kind in dict.fromkeys(kinds)][:MOST_LAYERS]
    rest = [layer for layer in range(len(kinds)) if layer not in first]
    return sorted(first + rest[: max(0, LAYERS - len(first))])


def _agree_heads(found: dict[str, Any], document: Mapping[str, Any]) -> None:
    """Keys have as many heads as queries where the family has it so."""
    for queries in ("num_attention_heads", "n_head", "num_heads"):
        for keys in ("num_key_value_heads", "num_kv_heads", "n_head_kv"):
            if keys in found and queries in found:
                same = document[keys] is None or document[keys] == document[queries]
                one = document[keys] == 1
                found[keys] = found[queries] if same else 1 if one else found[keys]


def _shrunk_value(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return _shrunk_rope(value) if name.startswith("rope_") else _shrunk(value)
    if isinstance(value, list) and _TOKEN.fullmatch(name):
        return [_shrunk_value(name, item) for item in value]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if _TOKEN.fullmatch(name):
        return value if value < VOCABULARY else VOCABULARY - 1 - value % 64
    size = next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), None)
    return value if size is None or value <= 0 else min(value, size)


def _shrunk_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Factors given for every pair of a head's dimensions have a length that goes with its width."""
    half = HEAD // 2
    found = dict(rope)
    for name, value in rope.items():
        if name.endswith("_factor") and isinstance(value, list):
            found[name] = (value * half)[:half]
        elif name == "mrope_section" and isinstance(value, list):
            found[name] = [half - 2 * (half // 3), half // 3, half // 3]
        elif isinstance(value, dict):
            found[name] = _shrunk_rope(value)
    return found
