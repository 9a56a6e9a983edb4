"""Bases that see the answer, or padding, are told before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from peftcli.errors import ModelError
from peftcli.tasks.base_checks import require_blind_to_padding, require_causal, require_trains
from peftcli.testing.families import tiny_model

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
ROW = [5, 9, 31, 7, 7, 80, 12, 44, 3, 61]


def bert(*, is_decoder: bool) -> nn.Module:
    return transformers.BertLMHeadModel(transformers.BertConfig(**SIZES, is_decoder=is_decoder))


def gemma(*, both_ways: bool) -> nn.Module:
    config = transformers.Gemma3TextConfig(
        **SIZES, num_key_value_heads=2, head_dim=8, layer_types=["full_attention"] * 2
    )
    config.use_bidirectional_attention = both_ways
    return transformers.Gemma3ForCausalLM(config)


def xlnet() -> nn.Module:
    return transformers.XLNetLMHeadModel(transformers.XLNetConfig(vocab_size=96, d_model=32, n_layer=2, n_head=4))


def xlm(*, causal: bool) -> nn.Module:
    config = transformers.XLMConfig(vocab_size=96, emb_dim=32, n_layers=2, n_heads=4, causal=causal)
    return transformers.XLMWithLMHeadModel(config)


SEEING = {
    "bert": lambda: bert(is_decoder=False),
    "xlnet": xlnet,
    "xlm": lambda: xlm(causal=False),
    "gemma": lambda: gemma(both_ways=True),
}
BLIND = {
    "bert": lambda: bert(is_decoder=True),
    "xlm": lambda: xlm(causal=True),
    "gemma": lambda: gemma(both_ways=False),
    "llama": lambda: tiny_model("llama"),
    "mixtral": lambda: tiny_model("mixtral"),
}


@pytest.mark.parametrize("name", SEEING)
def test_a_base_that_sees_later_tokens_is_refused(name: str) -> None:
    torch.manual_seed(0)
    with torch.no_grad(), pytest.raises(ModelError, match="sees the tokens that it should predict"):
        require_causal(SEEING[name]().eval(), ROW)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BLIND)
def test_a_decoder_passes(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = BLIND[name]().eval().to(dtype)
    require_causal(model, ROW)
    require_blind_to_padding(model, ROW, pad_token_id=0)


def test_rows_of_one_token_are_enough() -> None:
    require_causal(tiny_model("llama"), [0])
    with pytest.raises(ModelError):
        require_causal(bert(is_decoder=False).eval(), [3])


def test_a_base_that_ignores_the_mask_is_refused() -> None:
    """CPM-Ant counts relative positions over the whole padded length."""
    config = transformers.CpmAntConfig(
        vocab_size=96, hidden_size=32, dim_ff=48, num_hidden_layers=2, num_attention_heads=4, dim_head=8
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.CpmAntForCausalLM(config).eval()
    with pytest.raises(ModelError, match=r"ignores the attention mask.*") as caught:
        require_blind_to_padding(model, ROW, pad_token_id=0)
    assert "micro_batch_size: 1" in caught.value.render()


def test_a_base_that_cannot_train_on_rows_of_any_length_is_refused() -> None:
    """Reformer pads to whole chunks itself in evaluation, and in training wants them whole."""
    config = transformers.ReformerConfig(
        vocab_size=96, hidden_size=32, attention_head_size=8, num_attention_heads=4, feed_forward_size=48,
        attn_layers=["local"], local_attn_chunk_length=4, axial_pos_embds=False, max_position_embeddings=64,
        is_decoder=True,
    )  # fmt: skip
    model = transformers.ReformerModelWithLMHead(config).eval()
    require_trains(model, ROW[:8])
    with pytest.raises(ModelError, match=r"does not answer to a row of text in training.*multiple"):
        require_trains(model, ROW)
    assert not model.training
    require_trains(tiny_model("llama"), ROW)
