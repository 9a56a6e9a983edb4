"""Checks of forward and backward passes: gradients, padding, generation, checkpointing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.surgery import adapter_of, disabled
from peftcli.models.spelling import forward_names
from peftcli.testing.case import Case, inputs_for, logits, loss_of
from peftcli.testing.families import is_classifier, is_encoder_decoder

PADDING_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 1e-12
"""Of the largest gradient, in float64, where all methods on all families stay below 1e-13. In float32 the sums over a
block that is run twice are taken in another order, and T5's gradients differ by 3e-6."""


def every_tensor_gets_a_gradient(case: Case) -> str | None:
    """Within two steps each trainable tensor has a finite, non-zero gradient."""
    model = case.attached()
    adapter = adapter_of(model)
    optimizer = torch.optim.SGD(adapter.parameter_groups(1e-1, 0.0))
    waiting = set(adapter.trainable_parameters()) - adapter.gradient_exempt()
    waiting = {name for name in waiting if adapter.trainable_parameters()[name].requires_grad}
    # three passes, so that the last sees what two steps have moved
    for step in range(3):
        loss, extra = loss_of(model, seed=1 + step), adapter.extra_loss()
        (loss if extra is None else loss + extra).backward()
        for name, parameter in adapter.trainable_parameters().items():
            if parameter.grad is not None:
                assert torch.isfinite(parameter.grad).all(), f"{name} has a gradient that is not finite"
                if bool(parameter.grad.any()):
                    waiting.discard(name)
        optimizer.step()
        optimizer.zero_grad()
    assert not waiting, f"no gradient reaches {sorted(waiting)[:3]}"
    return None


def padding_changes_nothing(case: Case) -> str | None:
    """Rows padded left or right give, at real positions, what they give unpadded, which is not what the base gives."""
    model = case.trained()
    inputs = inputs_for(model, rows=1, length=7)
    expected = logits(model, inputs)
    tolerance = PADDING_TOLERANCE * max(1.0, float(expected.abs().max()))
    with disabled(model):
        effect = float((logits(model, inputs) - expected).abs().max())
    # else equality below would hold for an adapter that does nothing
    assert effect > 10 * tolerance, f"the method changes nothing: {effect:.1e}"
    for side in ("right", "left"):
        if side == "left" and (is_classifier(model) or is_encoder_decoder(model)):
            continue
        difference = _padding_difference(model, inputs, expected, side)
        with disabled(model):
            if _padding_difference(model, inputs, logits(model, inputs), side) > tolerance:
                return f"the base itself reads padding on the {side}"
        assert difference < tolerance, f"{side}: {difference:.1e}"
    return None


def _padding_difference(model: nn.Module, inputs: Mapping[str, Tensor], expected: Tensor, side: str) -> float:
    padded, window = _padded(inputs, side)
    if side == "left" and "position_ids" in forward_names(model):
        # as generation counts them: from the first real token
        padded["position_ids"] = (padded["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    found = logits(model, padded)
    if found.dim() == 3 and not is_encoder_decoder(model):
        found = found[:, window]
    return float((found - expected).abs().max())


def _padded(inputs: Mapping[str, Tensor], side: str) -> tuple[dict[str, Tensor], slice]:
    # further than the tiny sliding windows reach
    pad, length = 12, inputs["input_ids"].shape[1]
    sides = (pad, 0) if side == "left" else (0, pad)
    padded = {
        key: nn.functional.pad(value, sides) if key in ("input_ids", "attention_mask") else value
        for key, value in inputs.items()
    }
    return padded, slice(pad, None) if side == "left" else slice(0, length)


def cached_generation_is_the_same(case: Case) -> str | None:
    """Greedy generation with the cache equals step by step without it, left-padded rows included."""
    model = case.trained()
    if is_classifier(model):
        return "classifiers do not generate"
    inputs = inputs_for(model, rows=2, length=6)
    inputs.pop("decoder_input_ids", None)
    if not is_encoder_decoder(model):
        # of two rows one is shorter
        inputs["attention_mask"][0, :2] = 0
    # no end token: every answer has five tokens, and the shapes agree
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        cached = model.generate(**inputs, use_cache=True, **settings)  # type: ignore[operator]
        stepwise = model.generate(**inputs, use_cache=False, **settings)  # type: ignore[operator]
        # beams reorder what the cache holds
        beams = model.generate(**inputs, use_cache=True, num_beams=2, **settings)  # type: ignore[operator]
    assert torch.equal(cached, stepwise), f"cached {cached.tolist()} but stepwise {stepwise.tolist()}"
    assert beams.shape[0] == 2
    return None


def checkpointed_gradients_are_the_same(case: Case) -> str | None:
    """Gradient checkpointing (non-reentrant) gives the same gradients, in float64."""
    model = case.trained()
    if not getattr(model, "supports_gradient_checkpointing", False):
        return "the family has no gradient checkpointing"
    # the grouped product of expert weights knows no float64
    model.config._experts_implementation = "eager"  # type: ignore[union-attr]
    model.double().train()
    plain = _gradients(model)
    with warnings.catch_warnings():
        # transformers renames the call in version 6
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    again = _gradients(model)
    assert plain.keys() == again.keys()
    worst = max(float((plain[name] - again[name]).abs().max()) for name in plain)
    assert worst < GRADIENT_TOLERANCE * max(1.0, max(float(g.abs().max()) for g in plain.values())), (
        f"gradients differ by {worst:.1e}"
    )
    return None


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    # none left of the pass before
    for parameter in model.parameters():
        parameter.grad = None
    loss_of(model).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in adapter_of(model).trainable_parameters().items()
        if parameter.grad is not None
    }
