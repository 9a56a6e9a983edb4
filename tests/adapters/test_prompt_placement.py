"""Virtual tokens stand right before the first real token, whatever the model remembers by and whoever wrote it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli import adapters
from peftcli.adapters.prompt_placement import placement
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError, ModelError
from peftcli.models import spelling
from peftcli.testing import Case, run_contract
from peftcli.testing.families import MEMORIES, VOCAB, tiny_model

PROMPT = {"type": "prompt_tuning", "num_virtual_tokens": 5, "prompt_tuning_init": "RANDOM"}
PREFIX = {"type": "prefix_tuning", "num_virtual_tokens": 5}
REFT = {"type": "reft", "r": 2, "prefix_positions": 3}
ATTENTIVE = ("mistral_window", "gpt_oss", "gemma")
SETTINGS: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def moved(family: str, section: dict[str, Any]) -> nn.Module:
    model = tiny_model(family)
    adapters.attach(model, section)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_of(model).trainable_parameters().values():
            parameter.add_(torch.empty(parameter.shape).normal_(0.0, 0.3, generator=generator))
    return model


def ids_of(length: int, seed: int = 5) -> Tensor:
    return torch.randint(4, VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))


def stepwise(model: nn.Module, ids: Tensor, steps: int) -> Tensor:
    with torch.no_grad():
        for _ in range(steps):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids


# -- the arrangement of columns ------------------------------------------------------------------------------------


def test_the_prompt_stands_behind_the_padding_and_the_row_is_found_again() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1]])
    joined = torch.tensor([[7, 8, 1, 2, 3, 4]]).expand(3, -1)
    place = placement(mask, 2)
    placed = place.placed(joined)
    assert placed.tolist() == [[1, 2, 7, 8, 3, 4], [7, 8, 1, 2, 3, 4], [1, 7, 8, 2, 3, 4]]
    assert place.mask(mask).tolist() == [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]]
    assert place.rows(placed).tolist() == joined[:, 2:].tolist()
    # one row of positions for the whole batch, positions of three axes, keys by head, hidden states
    assert place.placed(joined[:1], dim=-1).tolist() == placed.tolist()
    assert place.placed(joined.expand(3, 3, -1), dim=-1)[1].tolist() == placed.tolist()
    assert place.placed(joined[:, None, :, None].expand(-1, 2, -1, 5), dim=2)[:, 1, :, 3].tolist() == placed.tolist()
    assert place.placed(joined[..., None].expand(-1, -1, 4))[..., 2].tolist() == placed.tolist()


def test_without_left_padding_the_prompt_is_in_front() -> None:
    assert placement(None, 3).order is None
    assert placement(torch.tensor([[1, 1, 0]]), 3).order is None
    with pytest.raises(AdapterError, match=r"\(batch, length\)"):
        placement(torch.ones(1, 1, 2, 2), 3)
    with pytest.raises(AdapterError, match="got dict"):
        placement({"full_attention": None}, 3)  # type: ignore[arg-type]


# -- models whose memory ends, or is a state -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "family"),
    [
        *((PROMPT, family) for family in MEMORIES if family != "rwkv"),
        *((PREFIX, family) for family in ("mistral_window", "gpt_oss")),
    ],
    ids=lambda value: value if isinstance(value, str) else value["type"],
)
def test_the_contract_holds_where_memory_ends_or_is_a_state(section: dict[str, Any], family: str) -> None:
    checks = ("padding_changes_nothing", "cached_generation_is_the_same", "every_tensor_gets_a_gradient")
    outcomes = run_contract(Case(section, family), checks)
    assert [outcome.error for outcome in outcomes if not outcome.passed] == []
    assert [outcome.skipped for outcome in outcomes if outcome.skipped is not None] == []


@pytest.mark.parametrize(
    ("section", "family"),
    [
        *((PROMPT, family) for family in ("mamba", "jamba", "qwen3_next", "lfm2", *ATTENTIVE)),
        *((PREFIX, family) for family in ATTENTIVE),
        *((REFT, family) for family in ("lfm2", "mistral_window")),
    ],
    ids=lambda value: value if isinstance(value, str) else value["type"],
)
def test_a_left_padded_row_is_continued_as_alone(section: dict[str, Any], family: str) -> None:
    model = moved(family, section)
    short, long = ids_of(6), ids_of(16, seed=6)
    both = torch.cat([nn.functional.pad(short, (10, 0)), long])
    written = model.generate(both, attention_mask=(both != 0).long(), use_cache=True, **SETTINGS)
    assert written[:1, 10:].tolist() == stepwise(model, short, 12).tolist()
    assert written[1:].tolist() == stepwise(model, long, 12).tolist()


def test_a_model_that_reads_its_padding_is_told_from_one_whose_prompt_is_misplaced() -> None:
    (outcome,) = run_contract(Case(PROMPT, "rwkv"), ["padding_changes_nothing"])
    assert outcome.skipped == "the base itself reads padding on the left"


def test_left_padded_layers_that_run_again_find_their_own_prefix() -> None:
    model = moved("llama", PREFIX).train()
    batches = []
    for padding in (3, 5):
        ids = nn.functional.pad(ids_of(6, seed=padding), (padding, 8 - padding))
        batches.append({"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.where(ids != 0, -100)})
    (parameter,) = adapter_of(model).trainable_parameters().values()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # two forward passes before one backward pass, padded differently
        losses = [model(**batch, use_cache=False).loss for batch in batches]
        gradients.append(torch.autograd.grad(sum(losses), parameter)[0])
    assert bool(gradients[0].any())
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-6


def test_a_cache_of_the_caller_is_as_it_was_after_a_failure() -> None:
    from transformers import DynamicCache

    model = moved("llama", PREFIX)
    cache = DynamicCache(config=model.config)
    before = [type(layer) for layer in cache.layers]
    inputs: dict[str, Any] = {"input_ids": ids_of(4), "use_cache": True}
    spelling.give_cache(model, inputs, cache)
    with pytest.raises(RuntimeError):
        model(**{**inputs, "position_ids": torch.arange(9)[None]})
    assert [type(layer) for layer in cache.layers] == before
    with torch.no_grad():
        first = model(**inputs).logits
    assert [type(layer) for layer in cache.layers] == before
    assert cache.get_seq_length() == 4 + 5
    assert float((first - model(ids_of(4), use_cache=False).logits).abs().max()) < 1e-5


# -- how releases of transformers spell it ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("section", [PROMPT, PREFIX, {**REFT, "prefix_positions": 7}], ids=lambda value: value["type"])
def test_a_cache_is_found_under_either_name(section: dict[str, Any], name: str) -> None:
    model = moved("llama", section)
    if name == "cache" and spelling.cache_name(model) != "cache":
        pytest.skip("this release knows one name only")
    ids = ids_of(9)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        first = model(ids[:, :5], use_cache=True)
        held = next(value for key, value in first.items() if key in ("cache", "past_key_values"))
        # no mask: what is cached has to be counted
        then = [model(ids[:, index : index + 1], **{name: held}).logits for index in range(5, 9)]
    assert float((torch.cat(then, dim=1) - whole[:, 5:]).abs().max()) < 1e-5


class Backbone(nn.Module):
    """Takes its cache under a name that nobody has heard of."""

    def forward(self, input_ids: Tensor, memory_bank: Any = None, use_cache: bool = True) -> None: ...


class NoCache(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> None: ...


def test_an_unknown_name_is_not_taken_for_a_model_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    spelling.check_memory_is_known(NoCache())
    with pytest.raises(ModelError, match="hands Backbone its cache under a name that peftcli does not know"):
        spelling.check_memory_is_known(Backbone())
    monkeypatch.setattr(spelling, "_CACHE_NAMES", ("bygone",))
    spelling._check_release.cache_clear()
    try:
        for section in (PROMPT, PREFIX, REFT):
            with pytest.raises(ModelError, match="under a name that peftcli does not know"):
                adapters.attach(tiny_model("llama"), section)
    finally:
        monkeypatch.undo()
        spelling._check_release.cache_clear()


def test_a_cache_that_does_not_tell_is_an_error() -> None:
    with pytest.raises(ModelError, match="does not say whether it holds tokens"):
        spelling.goes_on({"cache": object()})
    assert spelling.goes_on({"cache": None, "state": [torch.zeros(1)]})
    assert not spelling.goes_on({"past_key_values": None})
    assert spelling.goes_on({"cache_params": object(), "cache_position": torch.tensor([3])})


def test_an_embedding_that_is_never_asked_is_an_error() -> None:
    model = moved("llama", PROMPT)
    embedding = model.get_input_embeddings()
    table = embedding.weight.detach()
    model.model.embed_tokens = nn.Module()
    model.model.embed_tokens.forward = lambda ids: table[ids]  # type: ignore[method-assign]
    with pytest.raises(AdapterError, match="the prompt would not be read"):
        model(ids_of(4))
