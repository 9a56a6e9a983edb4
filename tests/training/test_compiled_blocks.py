"""Compiled layers: the same loss and gradients as plain ones, only in training passes, and themselves again afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from peftcli.adapters.surgery import adapter_of
from peftcli.errors import DeviceError
from peftcli.models.structure import structure
from peftcli.testing.case import Case, inputs_for
from peftcli.testing.sections import SECTIONS, reason_against
from peftcli.training import compiled_blocks as compiling
from peftcli.training.activation_checkpointing import checkpointed_blocks
from peftcli.training.compiled_blocks import compiled_blocks, require_compiler


@pytest.fixture(autouse=True)
def _without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated as ever, and the graphs then run by torch itself: no C++ is compiled."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")


def passes(model: nn.Module, wanted: bool, every: int = 0) -> tuple[Tensor, dict[str, Tensor], str | None]:
    """The loss and gradients of two batches of different shape, and what was compiled."""
    adapter = adapter_of(model)
    model.train()
    adapter.set_training(True)
    blocks = tuple(structure(model).blocks.values())
    total = torch.zeros(())
    with compiled_blocks(blocks, wanted) as compiled, checkpointed_blocks(blocks, every):
        for seed, batch in ((4, {}), (5, {"length": 7})):
            torch.manual_seed(seed)
            loss = model(**inputs_for(model, seed=seed, labels=True, **batch), use_cache=False).loss
            loss.backward()
            total = total + loss.detach()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in adapter.trainable_parameters().items()
        if parameter.grad is not None
    }
    return total, gradients, None if compiled is None else compiled.told()


def require_equal(section: dict[str, object], family: str, every: int = 0) -> str:
    case = Case(section, family)
    plain_loss, plain, nothing = passes(case.trained(), wanted=False, every=every)
    loss, gradients, told = passes(case.trained(), wanted=True, every=every)
    assert nothing is None
    assert told is not None
    torch.testing.assert_close(loss, plain_loss, rtol=1e-6, atol=0)
    assert gradients.keys() == plain.keys()
    for name, gradient in plain.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=2e-5 * scale + 1e-9, msg=name)
    return told


def test_a_compiled_layer_computes_what_a_plain_one_does() -> None:
    told = require_equal(dict(SECTIONS["lora"]), "llama")
    assert told.startswith("2 layers in ")
    assert not told.startswith("2 layers in 0 graphs")


@pytest.mark.slow
def test_recomputed_layers_are_compiled_too() -> None:
    require_equal(dict(SECTIONS["lora"]), "llama", every=1)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "t5"])
@pytest.mark.parametrize("method", sorted(SECTIONS))
def test_every_method_computes_the_same_in_compiled_layers(method: str, family: str) -> None:
    section = dict(SECTIONS[method])
    if (reason := reason_against(section, family)) is not None:
        pytest.skip(reason)
    require_equal(section, family)


def test_passes_that_do_not_train_stay_plain_and_the_layers_are_themselves_again() -> None:
    model = Case(dict(SECTIONS["lora"]), "llama").trained()
    blocks = tuple(structure(model).blocks.values())
    inputs = inputs_for(model, labels=True)
    with compiled_blocks(blocks, True) as compiled:
        model.eval()
        with torch.no_grad():
            model(**inputs)
        model(**inputs)  # a gradient without training mode: the check of a start
        model.train()
        with torch.no_grad():
            model(**inputs)
    assert compiled is not None
    assert compiled.graphs == 0
    assert all("forward" not in vars(block) for block in blocks)


def test_a_failure_of_the_compiler_is_told_as_one_and_one_of_the_layer_as_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(graph: object, inputs: object) -> None:
        raise ValueError("no such instruction\nand much more")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    layer = nn.Linear(4, 4)
    with compiled_blocks([layer], True), pytest.raises(DeviceError) as caught:
        layer(torch.ones(1, 4))
    assert "no such instruction" in caught.value.render()
    assert "training.compile: false" in caught.value.render()

    class Refusing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("a row too many")

    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    refusing = Refusing()
    with compiled_blocks([refusing], True), pytest.raises(ValueError, match="a row too many"):
        refusing(torch.ones(1))


def test_a_machine_without_a_compiler_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    require_compiler("cpu")
    monkeypatch.setattr(inductor.cpp, "cxx", ("/nonexistent/g++",))
    with pytest.raises(DeviceError, match="needs a C\\+\\+ compiler"):
        require_compiler("cpu")
