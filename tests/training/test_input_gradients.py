"""Reversible blocks give adapters no gradient above a frozen embedding, unless its output carries one."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from peftcli import adapters
from peftcli.errors import NumericalError
from peftcli.training.input_gradients import carry_through_inputs

IDS = torch.randint(3, 90, (1, 8), generator=torch.Generator().manual_seed(0))


def reformer() -> nn.Module:
    config = transformers.ReformerConfig(
        vocab_size=96, hidden_size=32, attention_head_size=8, num_attention_heads=4, feed_forward_size=48,
        attn_layers=["local"], local_attn_chunk_length=8, axial_pos_embds=False, max_position_embeddings=64,
        is_decoder=True, hidden_dropout_prob=0.0, local_attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.ReformerModelWithLMHead(config)


def test_every_adapter_of_a_reversible_model_learns() -> None:
    torch.manual_seed(0)
    model = reformer().train()
    adapters.attach(model, {"type": "lora", "r": 2, "init_lora_weights": False})
    before = model(input_ids=IDS).logits
    assert not before.requires_grad
    carry_through_inputs(model)
    logits = model(input_ids=IDS).logits
    assert torch.equal(logits, before), "no number changes"
    logits.pow(2).sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained)


def test_a_loss_of_nothing_is_an_error() -> None:
    model = reformer()
    carry_through_inputs(model)
    with pytest.raises(NumericalError, match="depends on no trainable tensor"):
        carry_through_inputs(model)
    with pytest.raises(NumericalError):
        carry_through_inputs(nn.Linear(2, 2))
