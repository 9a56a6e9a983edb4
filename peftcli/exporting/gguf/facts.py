"""The hyperparameters of a model under the keys of a GGUF file."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from peftcli.errors import AdapterError

_PLAIN_ROPE = (None, "default")


def write_facts(writer: Any, config: Any, where: str) -> None:
    """Adds the keys of a text model to a `gguf.GGUFWriter`. Raises `AdapterError` for what llama.cpp computes otherwise."""
    head = _head_size(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_rope(writer, config, head, where)
    _write_window(writer, config, where)
    for name, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        value = getattr(config, name, None)
        if value is not None:
            add(value)


def rope_factors(config: Any) -> Tensor | None:
    """What each rotary frequency is divided by where the family stretches them one by one (Llama 3.1's rule)."""
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    head = _head_size(config)
    # in float32, as llama.cpp's own script has it
    frequencies: Tensor = 1.0 / (rope["rope_theta"] ** (torch.arange(0, head, 2, dtype=torch.float32) / head))
    length = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    turns = length * frequencies / (2 * math.pi)
    smooth: Tensor = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    stretched: Tensor = 1.0 / ((1.0 - smooth) / factor + smooth)
    return stretched


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope(config: Any) -> dict[str, Any]:
    rope = dict(config.rope_parameters)
    return dict(rope.get("full_attention", rope))


def _write_rope(writer: Any, config: Any, head: int, where: str) -> None:
    rope = _rope(config)
    kind = rope.get("rope_type")
    _require(
        kind in (*_PLAIN_ROPE, "linear", "llama3"), f"rotary positions of the kind {kind!r} as written here", where
    )
    writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    local = dict(config.rope_parameters).get("sliding_attention")
    if isinstance(local, dict):
        writer.add_rope_freq_base_swa(local["rope_theta"])
    if kind == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _write_window(writer: Any, config: Any, where: str) -> None:
    """The sliding window, which llama.cpp has for two families, in the layers that it gives one."""
    window = getattr(config, "sliding_window", None)
    kinds = list(getattr(config, "layer_types", None) or ())
    slides = window is not None and getattr(config, "use_sliding_window", True)
    slides = slides and (not kinds or "sliding_attention" in kinds)
    every = _FULL_EVERY.get(config.model_type)
    if every is not None:
        expected = [
            "full_attention" if (place + 1) % every == 0 else "sliding_attention" for place in range(len(kinds))
        ]
        _require(kinds == expected, f"full attention in other layers than every {every}th", where)
        writer.add_sliding_window(window)
        return
    if config.model_type == "phi3":
        # 0 tells llama.cpp that there is none
        writer.add_sliding_window(0)
    _require(
        not slides or window >= config.max_position_embeddings,
        f"a sliding window of {window} tokens in a `{config.model_type}` model",
        where,
    )


_FULL_EVERY = {"gemma2": 2, "gemma3_text": 6}
"""Families with a sliding window there -> which of their layers sees everything."""


def require_same_arithmetic(config: Any, activation: str, where: str) -> None:
    """Raises `AdapterError` where llama.cpp has a constant of the family written down and this model has another."""
    given = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    _require(given == activation, f"the activation {given!r}", where)
    scalar = getattr(config, "query_pre_attn_scalar", None)
    _require(scalar is None or scalar == _head_size(config), f"query_pre_attn_scalar: {scalar}", where)


def _require(holds: bool, what: str, where: str) -> None:
    if not holds:
        raise AdapterError(
            f"llama.cpp does not compute {what}: it would answer otherwise",
            where=where,
            fix="export to another tool",
        )
