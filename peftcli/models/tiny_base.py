"""A tiny model with random weights of the same architecture and tokenizer as a base: to try a recipe, not to learn."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig

from peftcli.errors import ModelError
from peftcli.models.base_config import load_config
from peftcli.models.source import BaseSource
from peftcli.models.tokenizer import load_tokenizer

LAYERS = 2
"""Enough for one block to read what another wrote."""
WIDTH = 128
"""Of the hidden states."""
HEADS = 4


def _sizes(width: int) -> dict[str, int]:
    """The size of each key that families give to a width, a number of heads or of experts."""
    head = width // HEADS
    return {
        **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "word_embed_proj_dim"), width),
        **dict.fromkeys(_HEAD_COUNTS, HEADS),
        **dict.fromkeys(("head_dim", "d_kv", "v_head_dim", "kv_channels", "query_pre_attn_scalar"), head),
        **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim"), head // 2),
        **dict.fromkeys(("intermediate_size", "d_ff", "n_inner", "ffn_dim", "hidden_dim"), 2 * width),
        **dict.fromkeys(("ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim"), 2 * width),
        **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 2 * width),
        **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
        **dict.fromkeys(("num_experts_per_tok", "n_shared_experts", "n_group", "topk_group", "moe_topk"), 1),
        **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), width // 2),
    }


_HEAD_COUNTS = (
    "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
)  # fmt: skip
_LAYER_COUNTS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
)  # fmt: skip
_BY_LAYER = ("layer_types", "mlp_layer_types", "attention_types", "layers_block_type", "no_rope_layers")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")


def shrink(config: PretrainedConfig, *, layers: int | None = LAYERS, width: int = WIDTH) -> PretrainedConfig:
    """The configuration of a small sister: fewer and narrower layers, the same family, vocabulary and context.

    `layers`: None keeps their number. What a family is built on (grouped heads, tied embeddings) stays.
    """
    return type(config).from_dict(_shrunk(config.to_dict(), layers, width))


def _shrunk(document: Mapping[str, Any], layers: int | None, width: int) -> dict[str, Any]:
    found = dict(document)
    heads = next((found[name] for name in _HEAD_COUNTS if found.get(name)), None)
    for name in _KEY_VALUE_HEADS:
        if isinstance(found.get(name), int):
            # grouped heads stay grouped and one shared head stays one: the code for each differs
            found[name] = HEADS if not heads or found[name] >= heads else 1 if found[name] == 1 else HEADS // 2
    for name, size in _sizes(width).items():
        # `True` is an int; a size of zero or below switches a part off in some families
        if isinstance(found.get(name), int) and not isinstance(found[name], bool) and found[name] > 0:
            found[name] = size
    if layers is not None:
        for name in _LAYER_COUNTS:
            if isinstance(found.get(name), int):
                found[name] = min(found[name], layers)
        for name in _BY_LAYER:
            if isinstance(found.get(name), list):
                found[name] = _some_of_each(found[name], layers)
    # nested configurations (text, vision) have sizes of their own
    for name, value in found.items():
        if isinstance(value, dict):
            rope = name.startswith("rope_")
            found[name] = _shrunk_rope(value, width) if rope else _shrunk(value, layers, width)
    return found


def _some_of_each(kinds: list[Any], count: int) -> list[Any]:
    """The last layers, or one of each of two kinds: a family that mixes kinds has code for both."""
    different = list(dict.fromkeys(map(str, kinds)))
    if len(different) > 1 and count >= len(different):
        # reversed, so that the first of each kind stays
        first = {str(kind): kind for kind in reversed(kinds)}
        return ([first[name] for name in different] * count)[:count]
    return kinds[:count]


def _shrunk_rope(rope: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Factors given for every pair of a head's dimensions have a length that goes with its width."""
    half = width // HEADS // 2
    found = dict(rope)
    for name, value in rope.items():
        if name.endswith("_factor") and isinstance(value, list):
            found[name] = (value * half)[:half]
        elif name == "mrope_section" and isinstance(value, list):
            # three sections that add up to half a head, as its code demands
            found[name] = [half - 2 * (half // 3), half // 3, half // 3]
        elif isinstance(value, dict):
            found[name] = _shrunk_rope(value, width)
    return found


def write_tiny_base(
    source: BaseSource, folder: Path, *, auto_class: str, seed: int, layers: int | None, width: int = WIDTH
) -> None:
    """Writes the small sister of a base as a model folder; needs its configuration and tokenizer, never its weights.

    Raises `ModelError` for a family that cannot be made small this way.
    """
    config = shrink(load_config(source), layers=layers, width=width)
    tokenizer = load_tokenizer(source)
    # the caller's generator must not move, and the same seed gives the same weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = getattr(transformers, auto_class).from_config(config, dtype=torch.float32)
        except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise ModelError(
                f"no tiny model of the family {config.model_type} can be made: {' '.join(str(error).split())[:200]}",
                fix="try the recipe itself with training.max_steps=3",
            ) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if source.folder is not None and (source.folder / "generation_config.json").is_file():
        shutil.copyfile(source.folder / "generation_config.json", folder / "generation_config.json")
