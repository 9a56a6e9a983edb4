"""Prompts share a batch only where padding changes no answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import transformers

from peftcli import adapters
from peftcli.evaluation.config import GenerationConfig
from peftcli.evaluation.generate import generate
from peftcli.evaluation.padding import batches
from peftcli.testing.families import VOCAB, tiny_model

PROMPTS = [[5, 6, 7], [9, 8], [20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31], [40, 41], [9, 10, 9]]
CONFIG = GenerationConfig(max_new_tokens=8)
PROMPT = {"type": "prompt_tuning", "num_virtual_tokens": 4, "prompt_tuning_init": "RANDOM"}


def openai_gpt() -> Any:
    """Has positions and no cache at all."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    model = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


class Numbers:
    """Texts are token ids."""

    pad_token_id, eos_token_id, chat_template = 0, None, None
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def build(family: str) -> Any:
    model = openai_gpt() if family == "openai_gpt" else tiny_model(family)
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("section", [None, PROMPT], ids=["base", "prompt_tuning"])
@pytest.mark.parametrize("family", ["rwkv", "mamba", "qwen3_next", "mistral_window", "openai_gpt"])
def test_a_batch_answers_as_single_prompts_do(family: str, section: Any) -> None:
    model = build(family)
    if section is not None:
        adapters.attach(model, section)
    answers = generate(model, Numbers(), PROMPTS, config=CONFIG, batch_size=4)
    alone = [generate(model, Numbers(), [prompt], config=CONFIG)[0] for prompt in PROMPTS]
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in alone]


class Counting(torch.nn.Module):
    """A model whose positions begin at the padding: it gives the next id to each column's number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.generation_config = transformers.GenerationConfig()

    def generate(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=[torch.full((len(input_ids), 4), float(input_ids.shape[1]))] * 2)


def test_who_may_share_a_batch() -> None:
    assert batches(tiny_model("llama"), PROMPTS, batch_size=4, pad=0) == [[2, 0, 4, 1], [3]]
    assert batches(Counting(), PROMPTS, batch_size=4, pad=0) == [[2], [0, 4], [1, 3]]
    assert batches(tiny_model("rwkv"), PROMPTS, batch_size=4, pad=0) == [[2], [0], [4], [1], [3]]
    # nobody to share with: nothing to find out
    assert batches(None, PROMPTS, batch_size=1, pad=0) == [[2], [0], [4], [1], [3]]
    assert batches(None, [], batch_size=2, pad=0) == []


def test_finding_out_draws_nothing() -> None:
    model = tiny_model("llama")
    model.generation_config.update(do_sample=True, temperature=2.0, top_k=5)
    state = torch.get_rng_state()
    list(batches(model, PROMPTS, batch_size=4, pad=0))
    assert torch.equal(torch.get_rng_state(), state)
