"""A base whose `generate` reads a text unlike training does is written with as it was trained, and that is told."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from peftcli import adapters
from peftcli.errors import ModelError, ModelWarning
from peftcli.evaluation.config import GenerationConfig
from peftcli.evaluation.generate import generate
from peftcli.testing import tiny_model

PROMPTS = [[5, 9, 11, 23, 7], [31, 8, 40]]


class Letters:
    """As much of a tokenizer as writing asks for."""

    pad_token_id, eos_token_id, chat_template, added_tokens_decoder = 0, None, None, {}

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(map(str, ids))


def roberta() -> nn.Module:
    """A decoder whose positions begin behind that of its pad token, where `generate` counts from 0."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.RobertaConfig(
        **sizes,
        intermediate_size=48,
        max_position_embeddings=80,
        is_decoder=True,
        pad_token_id=1,
        initializer_range=0.5,
    )
    return transformers.RobertaForCausalLM(config).eval()


@torch.no_grad()
def greedy(model: nn.Module, prompt: list[int], count: int) -> list[int]:
    """Token by token from the whole text."""
    ids = torch.tensor([prompt])
    for _ in range(count):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    found: list[int] = ids[0, len(prompt) :].tolist()
    return found


def written(model: nn.Module, **config: Any) -> list[list[int]]:
    answers = generate(model, Letters(), PROMPTS, config=GenerationConfig(max_new_tokens=12, **config))
    return [answer.token_ids for answer in answers]


@pytest.mark.parametrize("with_adapter", [False, True])
def test_the_whole_text_is_read_where_the_cache_leads_elsewhere(with_adapter: bool) -> None:
    model = roberta()
    if with_adapter:
        adapters.attach(model, {"type": "lora", "r": 4, "target_modules": ["query"]})
    expected = [greedy(model, prompt, 12) for prompt in PROMPTS]
    with pytest.warns(ModelWarning, match="differently from how RobertaForCausalLM does in training"):
        assert written(model) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # told once
        assert written(model) == expected


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba", "mixtral", "gemma", "opt"])
def test_a_model_that_reads_alike_is_written_with_as_it_is(family: str) -> None:
    model = tiny_model(family)
    seen: list[bool] = []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs.get("use_cache")), with_kwargs=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        first, second = (written(model, do_sample=True) for _ in range(2))
    assert first == second, "trying it out draws from no stream"
    assert seen[-1] is True


def test_a_mask_behind_the_text_is_refused() -> None:
    torch.manual_seed(0)
    config = transformers.XLMConfig(
        vocab_size=64, emb_dim=32, n_layers=2, n_heads=4, causal=True, mask_token_id=5, lang_id=0
    )
    model = transformers.XLMWithLMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20.0)
    with pytest.raises(ModelError, match="of XLMWithLMHeadModel reads a text differently from its forward pass"):
        written(model)


def test_a_cache_that_leads_elsewhere_is_left_out() -> None:
    """A family that reads the last token alone once it has a cache."""
    model = tiny_model("llama")

    def forgetful(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids = kwargs["input_ids"].clone()
        if kwargs.get("use_cache"):
            ids[:, :-1] = 1
        return args, {**kwargs, "input_ids": ids}

    model.register_forward_pre_hook(forgetful, with_kwargs=True)
    expected = [greedy(model, prompt, 12) for prompt in PROMPTS]
    with pytest.warns(ModelWarning, match="the whole text again for each token"):
        assert written(model) == expected
