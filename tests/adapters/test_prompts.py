"""Prompts on tiny models: what enters the forward pass, and that nothing else changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli import adapters
from peftcli.adapters.base import InitContext
from peftcli.adapters.layers import named_base_parameters
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError, MergeError, RecipeError
from peftcli.testing.families import VOCAB, tiny_model

PROMPTS: dict[str, dict[str, Any]] = {
    "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 5},
}
methods = pytest.mark.parametrize("method", PROMPTS)


def moved(model: nn.Module, section: dict[str, Any]) -> nn.Module:
    """With the method on it, away from its start."""
    adapters.attach(model, section)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_of(model).trainable_parameters().values():
            parameter.add_(torch.empty(parameter.shape).normal_(0.0, 0.1, generator=generator))
    return model


def token_ids(rows: int, length: int, seed: int = 5) -> Tensor:
    return torch.randint(4, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


@methods
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_equals_its_unpadded_run(method: str, attention: str, side: str) -> None:
    model = moved(tiny_model("llama", attention=attention), PROMPTS[method])
    short, long, pads = token_ids(1, 6), token_ids(1, 9, seed=6), torch.zeros(1, 3, dtype=torch.long)
    ids = torch.cat([torch.cat([pads, short] if side == "left" else [short, pads], dim=1), long])
    mask = (ids != 0).long()
    with torch.no_grad():
        both = model(ids, attention_mask=mask).logits
        assert both.shape == (2, 9, VOCAB)
        assert distance(both[0, mask[0].bool()], model(short).logits[0]) < 2e-5
        assert distance(both[1], model(long).logits[0]) < 2e-5


@methods
@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32])
def test_the_mask_keeps_its_own_type(method: str, kind: torch.dtype) -> None:
    model = moved(tiny_model("llama"), PROMPTS[method])
    ids = token_ids(2, 7)
    with torch.no_grad():
        assert distance(model(ids, attention_mask=torch.ones_like(ids).to(kind)).logits, model(ids).logits) < 1e-5


@methods
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "opt"])
def test_generation_equals_step_by_step(method: str, family: str) -> None:
    model = moved(tiny_model(family), PROMPTS[method])
    prompts = torch.cat([torch.zeros(1, 2, dtype=torch.long), token_ids(1, 5)], dim=1)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    generated = model.generate(prompts, attention_mask=(prompts != 0).long(), **settings)
    ids = prompts[:, 2:]
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert generated[:, 2:].tolist() == ids.tolist()


@methods
def test_beams_and_sampling_run_over_the_cache(method: str) -> None:
    model = moved(tiny_model("llama"), PROMPTS[method])
    ids = token_ids(2, 5)
    settings: dict[str, Any] = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None}
    cached = model.generate(ids, num_beams=3, use_cache=True, do_sample=False, **settings)
    stepwise = model.generate(ids, num_beams=3, use_cache=False, do_sample=False, **settings)
    assert cached.tolist() == stepwise.tolist()
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        drawn.append(model.generate(ids, do_sample=True, use_cache=use_cache, **settings).tolist())
    assert drawn[0] == drawn[1]


@methods
def test_embedded_input_is_taken_too(method: str) -> None:
    model = moved(tiny_model("llama"), PROMPTS[method])
    ids = token_ids(2, 6)
    with torch.no_grad():
        embedded = model.get_input_embeddings()(ids)
        assert distance(model(inputs_embeds=embedded).logits, model(ids).logits) < 1e-5


@methods
def test_hidden_states_and_labels_are_those_of_real_tokens(method: str) -> None:
    model = moved(tiny_model("llama"), PROMPTS[method])
    ids = token_ids(2, 6)
    output = model(ids, labels=ids, output_hidden_states=True)
    assert {state.shape[1] for state in output.hidden_states} == {6}
    expected = nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert distance(output.loss, expected) < 1e-6


@methods
def test_positions_given_by_the_caller_are_shifted(method: str) -> None:
    model = moved(tiny_model("gpt2"), PROMPTS[method])
    ids = token_ids(1, 6)
    with torch.no_grad():
        assert distance(model(ids, position_ids=torch.arange(6)[None]).logits, model(ids).logits) < 1e-6


@methods
def test_a_copied_model_has_a_life_of_its_own(method: str) -> None:
    model = moved(tiny_model("llama"), PROMPTS[method])
    ids = token_ids(1, 6)
    with torch.no_grad():
        expected = model(ids).logits
        twin = copy.deepcopy(model)
        assert torch.equal(twin(ids).logits, expected)
        for parameter in adapter_of(twin).trainable_parameters().values():
            parameter.mul_(-3.0)
        assert distance(twin(ids).logits, expected) > 1e-4
        adapters.detach(twin)
        assert torch.equal(model(ids).logits, expected)
        with adapters.disabled(model):
            assert torch.equal(model(ids).logits, twin(ids).logits)


@methods
def test_the_prompt_is_among_the_parameters_but_not_in_the_base(method: str) -> None:
    model = tiny_model("llama")
    names = [name for name, _ in named_base_parameters(model)]
    summary = adapters.attach(model, PROMPTS[method])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(name.startswith("prompt_encoder.default.") for name in trained)
    assert summary.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert [name for name, _ in named_base_parameters(model)] == names
    adapters.detach(model)
    assert not hasattr(model, "prompt_encoder")


@methods
def test_a_prompt_cannot_be_merged(method: str) -> None:
    model = moved(tiny_model("llama"), PROMPTS[method])
    ids = token_ids(1, 4)
    with torch.no_grad():
        expected = model(ids).logits
        with pytest.raises(MergeError, match="no weight can stand for it"):
            adapters.merge(model)
        assert torch.equal(model(ids).logits, expected)


@methods
def test_a_mask_of_four_dimensions_is_refused(method: str) -> None:
    model = moved(tiny_model("llama"), PROMPTS[method])
    with pytest.raises(AdapterError, match=r"\(batch, length\)"):
        model(token_ids(1, 4), attention_mask=torch.zeros(1, 1, 4, 4))


@methods
def test_a_head_is_trained_beside_the_prompt(method: str) -> None:
    model = tiny_model("bert")
    with pytest.raises(AdapterError, match="modules_to_save"):
        adapters.attach(model, {**PROMPTS[method], "modules_to_save": ["clasifier"]})
    assert not hasattr(model, "prompt_encoder")
    adapters.attach(model, {**PROMPTS[method], "modules_to_save": ["classifier"]})
    keys = [entry.key for entry in adapter_of(model).entries()]
    assert keys == ["prompt_embeddings", "base_model.classifier.weight", "base_model.classifier.bias"]


# -- starts --------------------------------------------------------------------------------------------------------


class Words:
    """Cuts a text at spaces into ids."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


def test_a_text_start_repeats_a_short_text_and_cuts_a_long_one() -> None:
    for text, ids in (("7 8", [7, 8, 7, 8, 7]), ("9 8 7 6 5 4 3", [9, 8, 7, 6, 5])):
        model = tiny_model("llama")
        context = InitContext(torch.Generator(), tokenizer=Words())
        section = {**PROMPTS["prompt_tuning"], "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": text}
        adapters.attach(model, section, context=context)
        with torch.no_grad():
            expected = model.get_input_embeddings()(torch.tensor(ids))
            assert torch.equal(adapter_of(model).state()["prompt_embeddings"], expected)


def test_a_sampled_start_is_rows_of_the_vocabulary_chosen_by_the_seed() -> None:
    starts = []
    for seed in (0, 0, 1):
        model = tiny_model("llama")
        adapters.attach(model, PROMPTS["prompt_tuning"], seed=seed)
        starts.append(adapter_of(model).state()["prompt_embeddings"])
    table = model.get_input_embeddings().weight
    assert all(bool((table == row).all(dim=1).any()) for row in starts[0])
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_a_text_without_a_text_start_is_an_error() -> None:
    with pytest.raises(RecipeError, match="need each other"):
        adapters.attach(tiny_model("llama"), {"type": "prompt_tuning", "prompt_tuning_init_text": "Sort this:"})
    with pytest.raises(RecipeError, match="need each other"):
        adapters.attach(tiny_model("llama"), {"type": "prompt_tuning", "prompt_tuning_init": "TEXT"})


def test_a_text_start_without_a_tokenizer_says_how_to_give_one() -> None:
    model = tiny_model("llama")
    section = {"type": "prompt_tuning", "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "Sort this:"}
    with pytest.raises(AdapterError, match="tokenizer"):
        adapters.attach(model, section)
    assert not hasattr(model, "prompt_encoder")
