"""Checks of attaching: starts, counts, names, merging, and a base that is the same afterwards."""

from __future__ import annotations

import copy

import torch
from torch import nn

from peftcli import adapters
from peftcli.adapters.base_modules import named_base_parameters
from peftcli.adapters.registry import parse_method
from peftcli.adapters.surgery import adapter_of, attach, attached, build, summary
from peftcli.errors import MergeError
from peftcli.testing.case import Case, inputs_for, logits, loss_of

MERGE_TOLERANCE = 1e-4
START_TOLERANCE = 1e-5


def starts_as_stated(case: Case) -> str | None:
    """A method starts as the base, unless its adapter says that it does not."""
    model = case.attached()
    inputs = inputs_for(model)
    tuned = logits(model, inputs)
    with adapters.disabled(model):
        plain = logits(model, inputs)
    reason = adapter_of(model).start_differs()
    if reason is not None:
        return f"does not start as the base: {reason}"
    difference = float((tuned - plain).abs().max())
    # a start may cancel out instead of being zero: rounding then grows with the numbers, which T5 does not scale
    assert difference < START_TOLERANCE * max(1.0, float(plain.abs().max())), (
        f"differs from the base by {difference:.1e} at the start"
    )
    return None


def base_is_untouched(case: Case) -> str | None:
    """Training steps, disabling and detaching leave every base tensor and the module tree exactly as they were."""
    model = case.fresh()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tree = [(name, type(module)) for name, module in model.named_modules()]
    grads = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    inputs = inputs_for(model)
    expected = logits(model, inputs)
    attach(model, dict(case.section), context=case.context())
    adapter = adapter_of(model)
    optimizer = torch.optim.AdamW(adapter.parameter_groups(1e-2, 0.0))
    # two steps: in the first, a factor behind another that is zero (LoRA's A) has no gradient yet
    for _ in range(2):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    with adapters.disabled(model):
        assert torch.equal(logits(model, inputs), expected), "disabled does not give the base's answer"
    adapters.detach(model)
    after = model.state_dict()
    assert after.keys() == before.keys(), f"names differ: {sorted(after.keys() ^ before.keys())[:3]}"
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert not changed, f"the base changed: {changed[:3]}"
    assert [(name, type(module)) for name, module in model.named_modules()] == tree, "the module tree changed"
    assert {n: p.requires_grad for n, p in model.named_parameters()} == grads, "requires_grad was not restored"
    assert not _hooks(model), "hooks were left behind"
    assert torch.equal(logits(model, inputs), expected), "detached, the model answers differently"
    return None


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def base_parameters_keep_their_names(case: Case) -> str | None:
    """Fingerprints see the same base with and without the adapter."""
    bare = {name for name, _ in named_base_parameters(case.fresh())}
    wrapped = {name for name, _ in named_base_parameters(case.attached())}
    assert bare == wrapped, f"names differ: {sorted(bare ^ wrapped)[:3]}"
    return None


def counts_agree(case: Case) -> str | None:
    """Trainable == requires_grad == reported == on the meta device; saved tensors are those of `entries`."""
    model = case.attached()
    adapter = adapter_of(model)
    # by identity: a tensor under two names counts once
    ours = {id(p): p.numel() for p in adapter.trainable_parameters().values() if p.requires_grad}
    live = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    assert ours == live, "the trainable tensors are not exactly those with requires_grad in the model"
    assert all(p.dtype == torch.float32 for p in adapter.trainable_parameters().values()), "masters are not float32"
    found = summary(model)
    assert found.trainable == sum(live.values()), "the reported count is wrong"
    skeleton = _on_meta_device(case.fresh())
    build(skeleton, parse_method(dict(case.section)))
    assert summary(skeleton).trainable == found.trainable, "the count on the meta device differs"
    return None


def merges_or_says_why(case: Case) -> str | None:
    """Merged, the model is plain and gives the same logits; else a reason is given and nothing is touched."""
    model = case.trained()
    inputs = inputs_for(model)
    expected = logits(model, inputs)
    plain_names = set(case.fresh().state_dict())
    refusal = _merge_refusal(model)
    if refusal is not None:
        assert len(refusal) > 20, "the refusal gives no reason"
        assert torch.equal(logits(model, inputs), expected), "a refused merge touched the model"
        return f"not mergeable: {refusal}"
    difference = float((logits(model, inputs) - expected).abs().max())
    scale = max(1.0, float(expected.abs().max()))
    assert difference < MERGE_TOLERANCE * scale, f"merged differs by {difference:.1e}"
    assert set(model.state_dict()) == plain_names, "the merged model is not plain"
    assert attached(model) is None
    assert not _hooks(model), "the merged model is not plain: hooks are left"
    return None


def _merge_refusal(model: nn.Module) -> str | None:
    try:
        adapters.merge(model)
    except MergeError as error:
        return error.message
    return None


def _on_meta_device(model: nn.Module) -> nn.Module:
    """A copy without values, in which what is one tensor stays one (`Module.to` would part tied ones)."""
    empty = {
        id(tensor): nn.Parameter(tensor.detach().to("meta"), tensor.requires_grad) for tensor in model.parameters()
    }
    return copy.deepcopy(model, dict(empty)).to("meta")
