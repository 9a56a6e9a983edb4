"""Prompts on tiny models: what enters the forward pass, and that nothing else changes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peftcli import adapters
from peftcli.adapters.base import InitContext
from peftcli.adapters.base_modules import named_base_parameters
from peftcli.adapters.registry import config_class
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError, MergeError, RecipeError
from peftcli.testing.families import VOCAB, tiny_model

PROMPTS: dict[str, dict[str, Any]] = {
    "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 5},
    "p_tuning": {"type": "p_tuning", "num_virtual_tokens": 5, "encoder_hidden_size": 8},
    "prefix_tuning": {"type": "prefix_tuning", "num_virtual_tokens": 5},
    "prefix_projection": {"type": "prefix_tuning", "num_virtual_tokens": 5, "prefix_projection": True},
}
methods = pytest.mark.parametrize("method", PROMPTS)
ways_in = pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
"""One method of each way into the forward pass; what a prompt is made of does not matter there."""


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


@ways_in
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


@ways_in
@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32])
def test_the_mask_keeps_its_own_type(method: str, kind: torch.dtype) -> None:
    model = moved(tiny_model("llama"), PROMPTS[method])
    ids = token_ids(2, 7)
    with torch.no_grad():
        assert distance(model(ids, attention_mask=torch.ones_like(ids).to(kind)).logits, model(ids).logits) < 1e-5


@ways_in
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
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


@ways_in
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


@ways_in
def test_embedded_input_is_taken_too(method: str) -> None:
    model = moved(tiny_model("llama"), PROMPTS[method])
    ids = token_ids(2, 6)
    with torch.no_grad():
        embedded = model.get_input_embeddings()(ids)
        assert distance(model(inputs_embeds=embedded).logits, model(ids).logits) < 1e-5


@ways_in
def test_hidden_states_and_labels_are_those_of_real_tokens(method: str) -> None:
    model = moved(tiny_model("llama"), PROMPTS[method])
    ids = token_ids(2, 6)
    output = model(ids, labels=ids, output_hidden_states=True)
    assert {state.shape[1] for state in output.hidden_states} == {6}
    expected = nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert distance(output.loss, expected) < 1e-6


@ways_in
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
def test_attaching_draws_nothing_from_the_shared_stream(method: str) -> None:
    before = torch.random.get_rng_state()
    model = tiny_model("llama")
    adapters.attach(model, PROMPTS[method])
    assert torch.equal(torch.random.get_rng_state(), before)


@methods
def test_a_prompt_cannot_be_merged(method: str) -> None:
    model = moved(tiny_model("llama"), PROMPTS[method])
    ids = token_ids(1, 4)
    with torch.no_grad():
        expected = model(ids).logits
        with pytest.raises(MergeError, match="no weight can stand for it"):
            adapters.merge(model)
        assert torch.equal(model(ids).logits, expected)


@ways_in
@pytest.mark.parametrize("family", ["gpt2", "opt", "bert", "roberta"])
def test_too_many_tokens_for_learned_positions_are_counted(method: str, family: str) -> None:
    model = moved(tiny_model(family), PROMPTS[method])
    most = 128 - 5 - (1 if family == "roberta" else 0)
    with torch.no_grad():
        model(token_ids(1, most))
        with pytest.raises(AdapterError, match=f"use at most {most} tokens"):
            model(token_ids(1, most + 1))


@ways_in
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
    assert "base_model.classifier.weight" in adapter_of(model).trainable_parameters()
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


def test_a_file_with_a_field_that_has_no_effect_is_read_and_written_as_it_was() -> None:
    for fields, name in (
        ({"peft_type": "P_TUNING", "encoder_num_layers": 3, "encoder_dropout": 0.1}, "p_tuning"),
        ({"peft_type": "PROMPT_TUNING", "prompt_tuning_init_text": "Sort this:"}, "prompt_tuning"),
    ):
        document = {"num_virtual_tokens": 4, **fields}
        config, kept = config_class(name).from_file(document, where="adapter_config.json")
        assert {**config.to_file(kept), **document} == config.to_file(kept)


# -- prefixes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen", "gemma", "phi", "gpt2", "gpt_neox", "opt", "mixtral"])
def test_a_prefix_from_a_text_is_the_text_read_before(family: str) -> None:
    model = tiny_model(family)
    ids = token_ids(1, 12)
    with torch.no_grad():
        whole = model(ids).logits
        adapters.attach(model, PROMPTS["prefix_tuning"], context=InitContext(torch.Generator(), batches=lambda: [rows]))
        assert distance(model(ids[:, 5:]).logits, whole[:, 5:]) < 1e-4


rows = {"input_ids": torch.cat([torch.zeros(1, 2, dtype=torch.long), token_ids(1, 12)], dim=1)}
rows["attention_mask"] = (rows["input_ids"] != 0).long()


def test_a_projected_prefix_starts_there_too() -> None:
    starts = []
    for method in ("prefix_tuning", "prefix_projection"):
        model = tiny_model("llama")
        adapters.attach(model, PROMPTS[method], context=InitContext(torch.Generator(), batches=lambda: [rows]))
        starts.append(adapter_of(model).entries()[0].stored())
    assert distance(starts[0], starts[1]) < 1e-4


def test_a_prefix_can_start_at_zero_or_from_a_given_text() -> None:
    model = tiny_model("llama")
    adapters.attach(model, {**PROMPTS["prefix_tuning"], "prefix_init": "zero"})
    assert not adapter_of(model).state()["prompt_embeddings"].any()
    model = tiny_model("llama")
    section = {**PROMPTS["prefix_tuning"], "prefix_init_text": "7 8 9 7 8"}
    adapters.attach(model, section, context=InitContext(torch.Generator(), tokenizer=Words()))
    with torch.no_grad():
        cache = tiny_model("llama")(torch.tensor([[7, 8, 9, 7, 8]])).past_key_values
    prefix = adapter_of(model).state()["prompt_embeddings"].view(5, 4, 2, 8)
    assert distance(prefix[:, 2], cache.layers[1].keys[0].transpose(0, 1)) < 1e-5
    with pytest.raises(RecipeError, match="no effect"):
        adapters.attach(tiny_model("llama"), {**section, "prefix_init": "zero"})


def test_recording_a_start_leaves_training_modes_alone() -> None:
    model = tiny_model("llama").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    adapters.attach(model, PROMPTS["prefix_tuning"])
    adapters.detach(model)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("use_cache", [None, False])
def test_checkpointed_layers_see_the_prefix(use_cache: bool | None) -> None:
    model = moved(tiny_model("llama"), PROMPTS["prefix_tuning"]).train()
    ids, more = token_ids(2, 8), token_ids(3, 6)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # two forward passes of other sizes before one backward pass
        losses = [model(batch, labels=batch, use_cache=use_cache).loss for batch in (ids, more)]
        (parameter,) = adapter_of(model).trainable_parameters().values()
        gradients.append(torch.autograd.grad(sum(losses), parameter)[0])
    assert bool(gradients[0].any())
    assert distance(*gradients) < 1e-6


def test_a_cache_comes_out_only_when_asked_for() -> None:
    model = moved(tiny_model("llama"), PROMPTS["prefix_tuning"])
    ids = token_ids(1, 6)
    with torch.no_grad():
        assert model(ids, use_cache=False).past_key_values is None
        first = model(ids[:, :4], use_cache=True)
        assert first.past_key_values.get_seq_length() == 5 + 4
        then = model(ids[:, 4:], past_key_values=first.past_key_values).logits
        assert distance(then, model(ids).logits[:, 4:]) < 1e-5


def test_a_model_without_a_cache_is_refused_with_another_method() -> None:
    config = transformers.DistilBertConfig(vocab_size=VOCAB, dim=32, n_layers=1, n_heads=4, hidden_dim=48)
    model = transformers.DistilBertForMaskedLM(config)
    with pytest.raises(AdapterError, match="takes none"):
        adapters.attach(model, PROMPTS["prefix_tuning"])
    adapters.attach(model, PROMPTS["prompt_tuning"])


# -- encoders beside the adapter -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["p_tuning", "prefix_projection"])
def test_an_encoder_of_another_prompt_is_refused(method: str, tmp_path: Path) -> None:
    model = moved(tiny_model("llama"), PROMPTS[method])
    adapters.save(model, tmp_path)
    tensors = load_file(tmp_path / "peftcli_encoder.safetensors")
    key = next(key for key in tensors if key.endswith(".bias"))
    lacking = {name: value for name, value in tensors.items() if name != key}
    shifted = {**tensors, key: tensors[key] + 1.0}
    for changed, message in ((shifted, "another prompt"), (lacking, "one of the file and the method")):
        save_file(changed, tmp_path / "peftcli_encoder.safetensors")
        other = tiny_model("llama")
        with pytest.raises(AdapterError, match=message):
            adapters.load(other, tmp_path)
        assert not hasattr(other, "prompt_encoder")


@methods
def test_a_file_whose_size_is_not_its_configuration_s_is_refused_before_it_is_allocated(
    method: str, tmp_path: Path
) -> None:
    adapters.save(moved(tiny_model("llama"), PROMPTS[method]), tmp_path)
    document = json.loads((tmp_path / "adapter_config.json").read_text())
    for field in ("num_virtual_tokens", "encoder_hidden_size"):
        if field == "encoder_hidden_size" and not (tmp_path / "peftcli_encoder.safetensors").exists():
            continue
        (tmp_path / "adapter_config.json").write_text(json.dumps({**document, field: 10**6}))
        model = tiny_model("llama")
        with pytest.raises(AdapterError, match=r"shape \["):
            adapters.load(model, tmp_path)
        assert not hasattr(model, "prompt_encoder")


def test_padding_on_the_left_of_an_encoder_changes_nothing() -> None:
    model = moved(tiny_model("t5"), PROMPTS["prompt_tuning"])
    ids, answer, pads = token_ids(1, 6), token_ids(1, 4, seed=8), torch.zeros(1, 3, dtype=torch.long)
    padded = torch.cat([pads, ids], dim=1)
    with torch.no_grad():
        expected = model(input_ids=ids, decoder_input_ids=answer).logits
        found = model(input_ids=padded, attention_mask=(padded != 0).long(), decoder_input_ids=answer).logits
    assert distance(found, expected) < 2e-5 * float(expected.abs().max())


# -- LLaMA-Adapter -------------------------------------------------------------------------------------------------


def test_only_the_last_layers_are_adapted() -> None:
    model = tiny_model("llama")
    summary = adapters.attach(model, {"type": "adaption_prompt", "adapter_len": 3, "adapter_layers": 1})
    assert summary.targets == ("model.layers.1.self_attn",)
    with pytest.raises(AdapterError, match="at most 2"):
        adapters.attach(tiny_model("llama"), {"type": "adaption_prompt", "adapter_layers": 3})


def test_the_gated_prompt_is_what_the_paper_writes() -> None:
    model = moved(tiny_model("llama"), {"type": "adaption_prompt", "adapter_len": 3, "adapter_layers": 1})
    layer = model.model.layers[1].self_attn
    base, hidden = layer.base_layer, torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cos, sin = model.model.rotary_emb(hidden, torch.arange(5)[None])
        query = base.q_proj(hidden).view(5, 4, 8).transpose(0, 1)
        half = torch.cat([-query[..., 4:], query[..., :4]], dim=-1)
        query = query * cos[0] + half * sin[0]
        keys = base.k_proj(layer.adaption_prompt[0]).view(3, 2, 8).transpose(0, 1).repeat_interleave(2, dim=0)
        values = base.v_proj(layer.adaption_prompt[0]).view(3, 2, 8).transpose(0, 1).repeat_interleave(2, dim=0)
        weights = layer.adaption_gate * torch.softmax(query @ keys.transpose(1, 2) / 8**0.5, dim=-1)
        added = base.o_proj((weights @ values).transpose(0, 1).reshape(5, 32))
        arguments = {"position_embeddings": (cos, sin), "attention_mask": None}
        assert distance(layer(hidden, **arguments)[0][0], base(hidden, **arguments)[0][0] + added) < 1e-5


def test_an_attention_whose_queries_cannot_be_had_is_refused() -> None:
    for family in ("gpt_neox", "bert", "t5"):
        with pytest.raises(AdapterError, match="adaption_prompt needs"):
            adapters.attach(tiny_model(family), {"type": "adaption_prompt"})


def test_a_method_without_heads_is_read_from_disk(tmp_path: Path) -> None:
    model = tiny_model("llama")
    adapters.attach(model, {"type": "prompt_tuning", "num_virtual_tokens": 2})
    adapters.save(model, tmp_path)
    adapters.detach(model)
    assert adapters.load(model, tmp_path).trainable == 0
