"""ReFT: the equation, the orthonormal subspace, and which positions are edited."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli import adapters
from peftcli.adapters.methods.reft.method import ReftLayer
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError
from peftcli.testing import Case, tiny_model
from peftcli.testing.case import inputs_for, logits


def layers(model: nn.Module) -> list[ReftLayer]:
    return [module for module in model.modules() if isinstance(module, ReftLayer)]


def edits(model: nn.Module, inputs: dict[str, Tensor], *, number: int = 0) -> Tensor:
    """(batch, length) of booleans: where the layer changes the hidden states behind its block."""
    layer = layers(model)[number]
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [
        layer.base_layer.register_forward_hook(keep("before")),
        layer.register_forward_hook(keep("after")),
    ]
    logits(model, inputs)
    for handle in handles:
        handle.remove()
    return (seen["before"] != seen["after"]).any(-1)


def test_the_edit_is_the_papers() -> None:
    model = Case({"type": "reft", "r": 3}, "llama", perturb=0.3).trained()
    layer = layers(model)[1]
    rotation = layer.rotation()
    assert torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-5)
    hidden = torch.randn(2, 4, 32)
    expected = hidden + (hidden @ layer.reft_W.T + layer.reft_b - hidden @ rotation.T) @ rotation
    assert torch.allclose(layer._edited(hidden), expected, atol=1e-5)


def test_the_subspace_stays_orthonormal_while_training() -> None:
    model = tiny_model("llama")
    adapters.attach(model, {"type": "reft", "r": 4})
    optimizer = torch.optim.AdamW(adapter_of(model).parameter_groups(5e-2, 0.0))
    first = layers(model)[0].rotation().detach()
    for step in range(5):
        model(**inputs_for(model, seed=step, labels=True)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    rotation = layers(model)[0].rotation().detach()
    assert not torch.allclose(rotation, first, atol=1e-3)
    assert torch.allclose(rotation @ rotation.T, torch.eye(4), atol=1e-5)


def test_it_starts_exactly_as_the_base() -> None:
    model = tiny_model("gpt2")
    plain = logits(model, inputs_for(model))
    adapters.attach(model, "loreft")
    assert torch.equal(logits(model, inputs_for(model)), plain)


def padded(side: str) -> dict[str, Tensor]:
    """One row of 7 tokens and one of 4, padded on a side."""
    ids = torch.randint(4, 96, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, slice(0, 3) if side == "left" else slice(4, None)] = 0
    return {"input_ids": ids, "attention_mask": mask}


def marked(*columns: int) -> list[bool]:
    return [column in columns for column in range(7)]


@pytest.mark.parametrize(
    ("side", "first_row", "second_row"),
    [("right", marked(0, 1), marked(0, 1)), ("left", marked(0, 1), marked(3, 4))],
)
def test_first_positions_leave_out_padding(side: str, first_row: list[bool], second_row: list[bool]) -> None:
    model = Case({"type": "reft", "r": 2, "prefix_positions": 2}, "llama").trained()
    assert edits(model, padded(side)).tolist() == [first_row, second_row]


@pytest.mark.parametrize(
    ("side", "first_row", "second_row"),
    [("right", marked(0, 5, 6), marked(0, 2, 3)), ("left", marked(0, 5, 6), marked(3, 5, 6))],
)
def test_first_and_last_positions_of_an_encoder(side: str, first_row: list[bool], second_row: list[bool]) -> None:
    section = {"type": "reft", "r": 2, "prefix_positions": 1, "suffix_positions": 2}
    model = Case(section, "bert").trained()
    assert edits(model, padded(side)).tolist() == [first_row, second_row]


def test_an_encoder_decoder_is_edited_where_it_reads() -> None:
    model = tiny_model("t5")
    summary = adapters.attach(model, {"type": "reft", "prefix_positions": 1, "suffix_positions": 1})
    assert summary.targets == ("encoder.block.0", "encoder.block.1")
    adapters.detach(model)
    assert len(adapters.attach(model, {"type": "reft"}).targets) == 4


def test_a_prompt_shorter_than_the_positions_goes_on_being_edited() -> None:
    """A prompt of 2 tokens with 4 edited positions: the first two generated tokens are edited as well."""
    model = Case({"type": "reft", "r": 2, "prefix_positions": 4}, "llama", perturb=0.5).trained()
    inputs = inputs_for(model, rows=2, length=2)
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = model.generate(**inputs, use_cache=True, **settings)
    stepwise = model.generate(**inputs, use_cache=False, **settings)
    assert torch.equal(cached, stepwise)
    assert edits(model, {"input_ids": cached}).tolist() == [[True] * 4 + [False] * 4] * 2


def test_last_positions_of_a_model_that_continues_are_refused() -> None:
    with pytest.raises(AdapterError, match="end of the prompt is not known"):
        adapters.attach(tiny_model("llama"), {"type": "reft", "suffix_positions": 2})


def test_a_mask_of_another_kind_is_refused() -> None:
    model = Case({"type": "reft", "prefix_positions": 2}, "llama").trained()
    inputs = inputs_for(model, rows=1, length=4)
    inputs["attention_mask"] = torch.ones(1, 1, 4, 4)
    with pytest.raises(AdapterError, match=r"mask of \(batch, length\)"):
        logits(model, inputs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"r": 64}, "hidden size 32"), ({"layers_to_transform": [4]}, r"\[4\]"), ({"modules_to_save": ["x"]}, "`x`")],
    ids=["rank", "block", "module"],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], message: str) -> None:
    model = tiny_model("llama")
    with pytest.raises(AdapterError, match=message):
        adapters.attach(model, {"type": "reft", "prefix_positions": 2, **fields})
    assert not layers(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
