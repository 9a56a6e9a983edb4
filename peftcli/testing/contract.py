"""One table of properties that every method must have on every family that it works with.

    outcomes = run_contract(Case({"type": "lora", "r": 4}, "llama"))
    assert all(outcome.passed for outcome in outcomes)

A check that does not apply returns the reason; one that fails raises `AssertionError`.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftcli import adapters
from peftcli.adapters.base import Adapter, InitContext
from peftcli.adapters.layers import named_base_parameters
from peftcli.adapters.registry import parse_method
from peftcli.adapters.storage import TENSORS_NAME, read_tensors
from peftcli.adapters.surgery import adapter_of, attach, attached, build, summary
from peftcli.errors import AdapterError, MergeError
from peftcli.testing.families import VOCAB, is_classifier, is_encoder_decoder, routes_to_experts, tiny_model

MERGE_TOLERANCE = 1e-4
PADDING_TOLERANCE = 2e-5
CACHE_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 5e-5
"""Sums over a checkpointed block are taken in another order; in float64 the difference is 1e-13."""


@dataclass(frozen=True)
class Case:
    """A method section, as in a recipe, on a family. `perturb`: scale of the noise that stands for training."""

    section: Mapping[str, Any]
    family: str
    perturb: float = 0.05
    model: Callable[[], nn.Module] | None = field(default=None, compare=False)

    def fresh(self) -> nn.Module:
        return self.model() if self.model is not None else tiny_model(self.family)

    def context(self, seed: int = 0) -> InitContext:
        """Everything that a start may ask for, on synthetic rows."""

        def batches() -> list[dict[str, Tensor]]:
            return [inputs_for(tiny_model(self.family), seed=10 + index, labels=True) for index in range(2)]

        def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            found: Tensor = model(**batch).loss
            return found

        return InitContext(torch.Generator().manual_seed(seed), tokenizer=None, batches=batches, loss=loss)

    def attached(self, seed: int = 0) -> nn.Module:
        model = self.fresh()
        attach(model, dict(self.section), context=self.context(seed))
        return model

    def trained(self) -> nn.Module:
        """With an adapter that has left its start, as after training."""
        model = self.attached()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in adapter_of(model).trainable_parameters().values():
                noise = torch.empty(parameter.shape).normal_(0.0, self.perturb, generator=generator)
                parameter.add_(noise.to(parameter.device))
        return model


@dataclass(frozen=True)
class Outcome:
    """What one check found. `skipped` gives the reason why it does not apply."""

    check: str
    case: Case
    skipped: str | None = None
    error: str | None = None

    @property
    def passed(self) -> bool:
        return self.error is None


# -- inputs ------------------------------------------------------------------------------------------------------


def inputs_for(
    model: nn.Module, *, seed: int = 1, length: int = 9, rows: int = 2, labels: bool = False
) -> dict[str, Tensor]:
    """Unpadded rows that suit the model: ids, mask, decoder ids for an encoder-decoder, labels on request."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCAB, (rows, length), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    decoder_ids = torch.randint(4, VOCAB, (rows, 6), generator=generator)
    if is_encoder_decoder(model):
        inputs["decoder_input_ids"] = decoder_ids
    if labels:
        inputs |= {"labels": _labels(model, ids, decoder_ids, rows)}
        inputs.pop("decoder_input_ids", None)
    return inputs


def _labels(model: nn.Module, ids: Tensor, decoder_ids: Tensor, rows: int) -> Tensor:
    if is_classifier(model):
        return torch.arange(rows) % 3
    return decoder_ids if is_encoder_decoder(model) else ids


def logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**inputs).logits
    return found


def _loss(model: nn.Module, seed: int = 1) -> Tensor:
    found: Tensor = model(**inputs_for(model, seed=seed, labels=True)).loss
    return found


# -- checks ------------------------------------------------------------------------------------------------------


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
    assert difference < 1e-5, f"differs from the base by {difference:.1e} at the start"
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
    for _ in range(2):
        _loss(model).backward()
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
    assert torch.equal(logits(model, inputs), expected), "detached, the model answers otherwise"
    return None


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def every_tensor_gets_a_gradient(case: Case) -> str | None:
    """Within two steps each trainable tensor has a finite, non-zero gradient."""
    model = case.attached()
    adapter = adapter_of(model)
    optimizer = torch.optim.SGD(adapter.parameter_groups(1e-1, 0.0))
    waiting = set(adapter.trainable_parameters()) - adapter.gradient_exempt()
    waiting = {name for name in waiting if adapter.trainable_parameters()[name].requires_grad}
    for step in range(3):
        loss, extra = _loss(model, seed=1 + step), adapter.extra_loss()
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


def counts_agree(case: Case) -> str | None:
    """Trainable == requires_grad == reported == on the meta device; saved tensors are those of `entries`."""
    model = case.attached()
    adapter = adapter_of(model)
    ours = {id(p): p.numel() for p in adapter.trainable_parameters().values() if p.requires_grad}
    live = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    assert ours == live, "the trainable tensors are not exactly those with requires_grad in the model"
    assert all(p.dtype == torch.float32 for p in adapter.trainable_parameters().values()), "masters are not float32"
    found = summary(model)
    assert found.trainable == sum(live.values()), "the reported count is wrong"
    skeleton = case.fresh().to("meta")
    # moved to the meta device, tensors that were one are two
    tie = getattr(skeleton, "tie_weights", None)
    if callable(tie):
        tie()
    build(skeleton, parse_method(dict(case.section)))
    assert summary(skeleton).trainable == found.trainable, "the count on the meta device differs"
    return None


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
            assert torch.equal(logits(again, inputs), logits(model, inputs)), "the loaded adapter answers otherwise"
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
    from peftcli.adapters.storage import serialise

    path.write_bytes(serialise(tensors))


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


def padding_changes_nothing(case: Case) -> str | None:
    """Rows padded left or right give, at real positions, what they give unpadded."""
    model = case.trained()
    inputs = inputs_for(model, rows=1, length=7)
    expected = logits(model, inputs)
    for side in ("right", "left"):
        if side == "left" and (is_classifier(model) or is_encoder_decoder(model)):
            continue
        padded, window = _padded(inputs, side)
        if side == "left" and _takes_positions(model):
            padded["position_ids"] = (padded["attention_mask"].cumsum(-1) - 1).clamp_min(0)
        found = logits(model, padded)
        if found.dim() == 3 and not is_encoder_decoder(model):
            found = found[:, window]
        difference = float((found - expected).abs().max())
        assert difference < PADDING_TOLERANCE * max(1.0, float(expected.abs().max())), f"{side}: {difference:.1e}"
    return None


def _takes_positions(model: nn.Module) -> bool:
    import inspect

    return "position_ids" in inspect.signature(type(model).forward).parameters


def _padded(inputs: Mapping[str, Tensor], side: str) -> tuple[dict[str, Tensor], slice]:
    pad, length = 3, inputs["input_ids"].shape[1]
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
        inputs["attention_mask"][0, :2] = 0
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        cached = model.generate(**inputs, use_cache=True, **settings)  # type: ignore[operator]
        stepwise = model.generate(**inputs, use_cache=False, **settings)  # type: ignore[operator]
        beams = model.generate(**inputs, use_cache=True, num_beams=2, **settings)  # type: ignore[operator]
    assert torch.equal(cached, stepwise), f"cached {cached.tolist()} but stepwise {stepwise.tolist()}"
    assert beams.shape[0] == 2
    return None


def checkpointed_gradients_are_the_same(case: Case) -> str | None:
    """Gradient checkpointing (non-reentrant) gives the same gradients."""
    model = case.trained()
    if not getattr(model, "supports_gradient_checkpointing", False):
        return "the family has no gradient checkpointing"
    model.train()
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
    for parameter in model.parameters():
        parameter.grad = None
    _loss(model).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in adapter_of(model).trainable_parameters().items()
        if parameter.grad is not None
    }


def resuming_is_exact(case: Case) -> str | None:
    """Four steps equal two steps, state saved, put into a fresh model whose adapter was built without a start, two more."""
    straight = case.attached()
    _train(straight, range(4))
    first = case.attached()
    optimizer = _train(first, range(2))
    second = case.fresh()
    adapter = _built_without_start(second, case)
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
        loss, extra = _loss(model, seed=step), adapter.extra_loss()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        adapter.after_step(step + 1, 4)
        optimizer.zero_grad()
    return optimizer


def half_precision_works(case: Case) -> str | None:
    """On a bfloat16 base the masters stay float32, logits stay close to the float32 ones, gradients are finite."""
    model = case.trained()
    half = case.fresh().to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as scratch:
        adapters.save(model, scratch)
        adapters.load(half, scratch, trainable=True, check_base=False)
    assert all(p.dtype == torch.float32 for p in adapter_of(half).trainable_parameters().values())
    found, expected = logits(half, inputs_for(model)), logits(model, inputs_for(model))
    assert found.dtype == torch.bfloat16, f"logits came out as {found.dtype}"
    with adapters.disabled(half), adapters.disabled(model):
        noise = float((logits(half, inputs_for(model)).float() - logits(model, inputs_for(model))).abs().max())
    allowed = 4 * noise + 0.1 * max(1.0, float(expected.abs().max()))
    differences = (found.float() - expected).abs().flatten(0, -2).amax(-1)
    # a router may send a token elsewhere once its input is rounded: there only most tokens agree
    difference = float(differences.median() if routes_to_experts(half) else differences.max())
    assert difference < allowed, f"differs by {difference:.2g} from the float32 answer, the base by {noise:.2g}"
    _loss(half).backward()
    for name, parameter in adapter_of(half).trainable_parameters().items():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), f"{name}: gradient not finite"
    return None


def base_parameters_keep_their_names(case: Case) -> str | None:
    """Fingerprints see the same base with and without the adapter."""
    bare = {name for name, _ in named_base_parameters(case.fresh())}
    wrapped = {name for name, _ in named_base_parameters(case.attached())}
    assert bare == wrapped, f"names differ: {sorted(bare ^ wrapped)[:3]}"
    return None


CHECKS: Mapping[str, Callable[[Case], str | None]] = {
    check.__name__: check
    for check in (
        starts_as_stated,
        base_is_untouched,
        every_tensor_gets_a_gradient,
        counts_agree,
        save_and_load_are_exact,
        damaged_files_are_refused,
        merges_or_says_why,
        padding_changes_nothing,
        cached_generation_is_the_same,
        checkpointed_gradients_are_the_same,
        resuming_is_exact,
        half_precision_works,
        base_parameters_keep_their_names,
    )
}


def run_contract(case: Case, checks: Sequence[str] | None = None) -> list[Outcome]:
    """Runs the checks (all by default) on one case and returns what each found; nothing is raised for a failure."""
    return [_outcome(name, CHECKS[name], case) for name in (checks or CHECKS)]


def _outcome(name: str, check: Callable[[Case], str | None], case: Case) -> Outcome:
    try:
        return Outcome(name, case, skipped=check(case))
    except (AssertionError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        return Outcome(name, case, error=f"{type(error).__name__}: {error}"[:400])
