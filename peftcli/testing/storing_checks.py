"""Checks of what is kept: adapter files, damaged ones, a run's state, other types."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from peftcli import adapters
from peftcli.adapters.base import Adapter
from peftcli.adapters.documents import TENSORS_NAME
from peftcli.adapters.registry import parse_method
from peftcli.adapters.surgery import adapter_of, attached, build
from peftcli.adapters.tensor_file import read_tensors, serialise
from peftcli.errors import AdapterError
from peftcli.testing.case import Case, inputs_for, logits, loss_of
from peftcli.testing.families import with_every_expert


def save_and_load_are_exact(case: Case) -> str | None:
    """From disk on a fresh base: the same logits, and written again the same bytes."""
    model = case.trained()
    inputs = inputs_for(model)
    with tempfile.TemporaryDirectory() as scratch:
        first, second = Path(scratch, "first"), Path(scratch, "second")
        adapters.save(model, first)
        again = case.fresh()
        adapters.load(again, first)
        shifted = adapter_of(model).saved_differently()
        if shifted is None:
            assert torch.equal(logits(again, inputs), logits(model, inputs)), "the loaded adapter answers differently"
        else:
            expected = logits(model, inputs)
            difference = float((logits(again, inputs) - expected).abs().max())
            scale = max(1.0, float(expected.abs().max()))
            assert difference < 1e-4 * scale, f"the loaded adapter differs by {difference:.1e}"
        assert not any(p.requires_grad for p in again.parameters()), "loading for use leaves tensors trainable"
        adapters.save(again, second)
        assert (first / TENSORS_NAME).read_bytes() == (second / TENSORS_NAME).read_bytes(), "written again, it differs"
    return None


def damaged_files_are_refused(case: Case) -> str | None:
    """A missing, an extra and a misshapen tensor are errors, and leave the model untouched."""
    model = case.trained()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "adapter")
        adapters.save(model, folder)
        tensors = read_tensors(folder / TENSORS_NAME)
        name = next(iter(tensors))
        # one tensor gone, one too many, one with a dimension more
        wrong: list[dict[str, Tensor]] = [
            {key: value for key, value in tensors.items() if key != name},
            {**tensors, "base_model.model.stranger.weight": torch.zeros(1)},
            {**tensors, name: torch.zeros(*tensors[name].shape, 2)},
        ]
        for damaged in wrong:
            _write(folder / TENSORS_NAME, damaged)
            other = case.fresh()
            try:
                adapters.load(other, folder)
            except AdapterError:
                assert attached(other) is None, "the model was touched"
                continue
            raise AssertionError("a damaged adapter was loaded")
    return None


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.write_bytes(serialise(tensors))


def resuming_is_exact(case: Case) -> str | None:
    """Four steps equal two steps, state saved, put into a fresh model whose adapter was built without a start, two more."""
    straight = case.attached()
    _train(straight, range(4))
    first = case.attached()
    optimizer = _train(first, range(2))
    second = case.fresh()
    adapter = _built_without_start(second, case)
    # copies: the state holds the first model's own tensors
    adapter.load_state({name: tensor.clone() for name, tensor in adapter_of(first).state().items()})
    fresh = torch.optim.AdamW(adapter.parameter_groups(1e-2, 0.0))
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _train(second, range(2, 4), fresh)
    ours, theirs = adapter_of(straight).state(), adapter_of(second).state()
    assert ours.keys() == theirs.keys()
    changed = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not changed, f"resumed tensors differ: {changed[:3]}"
    return None


def _built_without_start(model: nn.Module, case: Case) -> Adapter:
    """What no state fills stays NaN: torch fills fresh memory so while it is asked to be deterministic."""
    torch.use_deterministic_algorithms(True)
    try:
        return build(model, parse_method(dict(case.section)))
    finally:
        torch.use_deterministic_algorithms(False)


def _train(
    model: nn.Module, steps: Sequence[int], optimizer: torch.optim.Optimizer | None = None
) -> torch.optim.Optimizer:
    adapter = adapter_of(model)
    optimizer = optimizer or torch.optim.AdamW(adapter.parameter_groups(1e-2, 0.0))
    for step in steps:
        loss, extra = loss_of(model, seed=step), adapter.extra_loss()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        adapter.after_step(step + 1, 4)
        optimizer.zero_grad()
    return optimizer


def half_precision_works(case: Case) -> str | None:
    """On a bfloat16 base the masters stay float32, logits stay close to the float32 ones, gradients are finite."""
    # a router may send a token elsewhere once its input is rounded: no comparison of types can ask for that to agree
    model = with_every_expert(case.trained())
    half = with_every_expert(case.fresh()).to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as scratch:
        adapters.save(model, scratch)
        adapters.load(half, scratch, trainable=True, check_base=False)
    assert all(p.dtype == torch.float32 for p in adapter_of(half).trainable_parameters().values())
    found, expected = logits(half, inputs_for(model)), logits(model, inputs_for(model))
    assert found.dtype == torch.bfloat16, f"logits came out as {found.dtype}"
    with adapters.disabled(half), adapters.disabled(model):
        noise = float((logits(half, inputs_for(model)).float() - logits(model, inputs_for(model))).abs().max())
    # four times the base's own rounding, and a tenth of the answer's scale for what the adapter rounds
    allowed = 4 * noise + 0.1 * max(1.0, float(expected.abs().max()))
    difference = float((found.float() - expected).abs().max())
    assert difference < allowed, f"differs by {difference:.2g} from the float32 answer, the base by {noise:.2g}"
    loss_of(half).backward()
    for name, parameter in adapter_of(half).trainable_parameters().items():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), f"{name}: gradient not finite"
    return None
