from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from peftcli.errors import CheckpointError, NumericalError
from peftcli.training.checkpoint import CheckpointStore
from peftcli.training.guards import spike_message
from peftcli.training.loop import fit

MakeTiny = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("quick_disk")


def poison(tiny: Any, steps: set[int], *, gradient_only: bool = False, again: bool = True) -> None:
    """Makes the loss (or only its gradient) NaN at some steps; with `again` False only the first time."""
    inner = tiny.setup.compute_loss
    order, done = tiny.setup.order, set()
    targets = {tuple(sorted(map(int, order.batch(*divmod(step - 1, order.steps_per_epoch))))): step for step in steps}
    inner_rows = tiny.setup.get_rows
    now: list[int] = []

    def get_rows(indices: Sequence[int]) -> Any:
        step = targets.get(tuple(sorted(map(int, indices))))
        now[:] = [step] if step is not None and (again or step not in done) else []
        done.update(now)
        return inner_rows(indices)

    def compute_loss(model: Any, batch: Any) -> Any:
        loss = inner(model, batch)
        if not now or not model.training:
            return loss
        # the second is 0 with an infinite slope
        wrong = (model.bias - model.bias.detach()).abs().sqrt().sum() if gradient_only else torch.tensor(math.nan)
        return type(loss)(loss.total + wrong, loss.weight)

    tiny.setup.get_rows, tiny.setup.compute_loss = get_rows, compute_loss


@pytest.mark.parametrize("gradient_only", [False, True])
@pytest.mark.parametrize("step", [1, 6, 12])
def test_a_run_stops_at_the_very_step(make_tiny: MakeTiny, tmp_path: Path, step: int, gradient_only: bool) -> None:
    kept: list[Any] = []
    tiny = make_tiny(tmp_path)
    poison(tiny, {step}, gradient_only=gradient_only)

    def keep_batch(at: int, indices: Sequence[int], rows: Sequence[Any]) -> str:
        kept.append((at, sorted(indices), len(rows)))
        return "data/failed.jsonl"

    tiny.setup.keep_batch = keep_batch
    with pytest.raises(NumericalError, match=f"at step {step}") as caught:
        fit(tiny.setup)
    assert caught.value.where == "data/failed.jsonl"
    assert ("bias" in str(caught.value)) == gradient_only
    order = tiny.setup.order
    expected = sorted(order.batch(*divmod(step - 1, order.steps_per_epoch)))
    assert kept == [(step, expected, len(expected))]
    snapshot, rejected = CheckpointStore(tmp_path, "run", identity={"recipe": "abc"}).newest()
    assert not rejected
    assert snapshot is not None
    assert snapshot.state.step == step - 1  # nothing is lost but the step that failed
    assert all(bool(torch.isfinite(tensor).all()) for tensor in snapshot.adapter.values())


def test_skip_goes_on_without_the_batch(make_tiny: MakeTiny, tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path, on_nonfinite="skip")
    poison(tiny, {5, 7})
    result = fit(tiny.setup)
    assert [number + 1 for number, loss in enumerate(result.losses) if math.isnan(loss)] == [5, 7]
    assert result.steps == 12
    assert [line["step"] for line in tiny.events.of("skip")] == [5, 7]
    assert len(result.warnings) == 2
    assert bool(torch.isfinite(torch.tensor([float(t.sum()) for t in tiny.adapter.state().values()])).all())


def test_skip_is_bounded(make_tiny: MakeTiny, tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path, on_nonfinite="skip")
    poison(tiny, {2, 4, 5, 7})
    with pytest.raises(NumericalError, match="at step 7"):
        fit(tiny.setup)


def test_rollback_leaves_the_batch_out(make_tiny: MakeTiny, tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "a", on_nonfinite="rollback")
    poison(tiny, {7})
    result = fit(tiny.setup)
    assert [line["step"] for line in tiny.events.of("rollback")] == [7]
    assert [line["step"] for line in tiny.events.of("train")] == [1, 2, 3, 4, 5, 6, 5, 6, 8, 9, 10, 11, 12]
    assert math.isnan(result.losses[6])
    skipping = make_tiny(tmp_path / "b", on_nonfinite="skip")
    poison(skipping, {7})
    fit(skipping.setup)
    assert tiny.weights() == skipping.weights()


def test_rollback_is_bounded(make_tiny: MakeTiny, tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path, on_nonfinite="rollback")
    poison(tiny, {2, 4, 5, 7})
    with pytest.raises(NumericalError, match="at step 7"):
        fit(tiny.setup)
    assert len(tiny.events.of("rollback")) == 3


def test_a_non_finite_state_is_never_committed(make_tiny: MakeTiny, tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path)
    inner = tiny.adapter.after_step

    def after_step(step: int, total_steps: int) -> None:
        inner(step, total_steps)
        if step == 8:
            tiny.model.bias.data[3] = math.inf

    tiny.adapter.after_step = after_step
    with pytest.raises(NumericalError, match="after step 8 is not finite and was not saved: bias"):
        fit(tiny.setup)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000000", "step-00000004"]


def test_a_non_finite_end_is_an_error(make_tiny: MakeTiny) -> None:
    tiny = make_tiny()
    tiny.adapter.after_step = lambda step, total: tiny.model.bias.data.fill_(math.nan) if step == 12 else None
    with pytest.raises(NumericalError, match="the adapter is not finite: bias"):
        fit(tiny.setup)


def test_an_idle_tensor_is_named(make_tiny: MakeTiny) -> None:
    tiny = make_tiny()
    tiny.model.idle = torch.nn.Parameter(torch.ones(3))
    tiny.adapter.extra_loss = lambda: None
    with pytest.raises(NumericalError, match="no gradient reached 1 trainable tensors: idle"):
        fit(tiny.setup)
    assert [line["step"] for line in tiny.events.of("train")] == [1, 2]


def test_an_exempt_tensor_may_be_idle(make_tiny: MakeTiny) -> None:
    tiny = make_tiny()
    tiny.model.idle = torch.nn.Parameter(torch.ones(3))
    tiny.setup.may_stay_idle = frozenset({"idle"})
    tiny.adapter.extra_loss = lambda: None
    assert fit(tiny.setup).steps == 12


def test_an_adapter_without_effect_stops(make_tiny: MakeTiny) -> None:
    tiny, seen = make_tiny(steps=200), []

    def changes_logits(batch: Any) -> bool:
        assert not tiny.model.training
        seen.append(tiny.events.of("train")[-1]["step"] + 1)
        return False

    tiny.setup.changes_logits = changes_logits
    with pytest.raises(NumericalError, match="after 50 steps the adapter does not change the model's output"):
        fit(tiny.setup)
    assert seen == [3, 6, 12, 24, 48, 50]


def test_an_effect_is_looked_for_until_it_is_there(make_tiny: MakeTiny) -> None:
    tiny, answers = make_tiny(), [True, False]
    tiny.setup.changes_logits = lambda batch: answers.pop()
    fit(tiny.setup)
    assert answers == []


def test_a_loss_spike_warns(make_tiny: MakeTiny) -> None:
    calm = [2.0, 2.1, 1.9] * 8
    assert spike_message([*calm, 2.4]) is None
    assert spike_message([*calm, 4.0]) == "the loss jumped to 4; the median of the last 24 steps is 2"
    assert spike_message([*calm[:6], 4.0]) is None  # too early to tell
    assert spike_message([*calm, math.nan]) is None
    assert spike_message([*calm, 4.0, 2.0, 4.1]) is None  # told once for a stretch
    assert spike_message([*calm, 4.0, *calm * 3, 4.1]) is not None
    assert spike_message([0.001] * 30 + [0.01]) is None
    tiny = make_tiny(steps=30)
    inner = tiny.setup.compute_loss

    def compute_loss(model: Any, batch: Any) -> Any:
        loss = inner(model, batch)
        return type(loss)(loss.total * (3.0 if len(tiny.events.of("train")) == 24 else 1.0), loss.weight)

    tiny.setup.compute_loss = compute_loss
    result = fit(tiny.setup)
    assert [line["step"] for line in tiny.events.of("loss_spike")] == [25]
    assert any("jumped" in warning for warning in result.warnings)


def test_an_evaluation_that_is_not_finite_stops(make_tiny: MakeTiny) -> None:
    tiny = make_tiny(evaluate_every=3)
    tiny.setup.evaluate = lambda step: {"eval_loss": math.nan if step == 6 else 1.0}
    with pytest.raises(NumericalError, match="evaluation loss is nan at step 6"):
        fit(tiny.setup)


def test_resume_without_a_store(make_tiny: MakeTiny) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume from"):
        fit(make_tiny(resume=True).setup)


def test_a_run_of_one_step_is_no_fault(make_tiny: MakeTiny) -> None:
    """A factor behind one that starts at zero has no gradient yet; in the second step it must have one."""
    result = fit(make_tiny(steps=1).setup)
    assert result.steps == 1
    idle = make_tiny(steps=2)
    inner = idle.setup.compute_loss
    bias = idle.model.bias

    def without_blocks(model: Any, batch: Any) -> Any:
        loss = inner(model, batch)
        zero = (bias * 0.0).sum()
        return type(loss)(loss.total.detach() + bias.sum() + zero, loss.weight)

    idle.setup.compute_loss = without_blocks
    idle.adapter.extra_loss = lambda: None
    with pytest.raises(NumericalError, match="no gradient reached"):
        fit(idle.setup)


def test_a_run_of_one_step_has_no_gradient_behind_zero_yet(make_tiny: MakeTiny) -> None:
    tiny = make_tiny(steps=1)
    tiny.model.behind_zero = torch.nn.Parameter(torch.ones(3))
    tiny.adapter.extra_loss = lambda: (tiny.model.behind_zero * torch.zeros(3)).sum()
    assert fit(tiny.setup).steps == 1


def test_a_tensor_outside_of_the_loss_is_named_in_a_run_of_one_step(make_tiny: MakeTiny) -> None:
    tiny = make_tiny(steps=1)
    tiny.model.idle = torch.nn.Parameter(torch.ones(3))
    tiny.adapter.extra_loss = lambda: None
    with pytest.raises(NumericalError, match="no gradient reached 1 trainable tensors: idle"):
        fit(tiny.setup)


@pytest.mark.parametrize("steps", [2, 3])
def test_a_gradient_that_stays_zero_is_named(make_tiny: MakeTiny, steps: int) -> None:
    tiny = make_tiny(steps=steps)
    tiny.model.behind_zero = torch.nn.Parameter(torch.ones(3))
    tiny.adapter.extra_loss = lambda: (tiny.model.behind_zero * torch.zeros(3)).sum()
    with pytest.raises(NumericalError, match="no gradient reached 1 trainable tensors: behind_zero"):
        fit(tiny.setup)
