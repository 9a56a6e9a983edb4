from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from peftcli.errors import DataError, DeviceError, MemoryLimitError, ModelError, RecipeError
from peftcli.training.acceleration import build_accelerator
from peftcli.training.activation_checkpointing import checkpointed_blocks
from peftcli.training.config import CheckpointConfig
from peftcli.training.loop import fit

MakeTiny = Callable[..., Any]


def trained(tiny: Any) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tiny.adapter.trainable_parameters().values()]).detach()


def relative_difference(one: Any, other: Any) -> float:
    return float((trained(one) - trained(other)).norm() / trained(one).norm())


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_the_result_does_not_depend_on_the_cut(make_tiny: MakeTiny, gradient_checkpointing: bool) -> None:
    options = {"optimizer": "sgd", "learning_rate": 0.3, "gradient_checkpointing": gradient_checkpointing}
    runs = [make_tiny(micro_batch_size=size, **options) for size in (8, 2, 1, 3)]
    results = [fit(run.setup) for run in runs]
    for run, result in zip(runs[1:], results[1:], strict=True):
        assert relative_difference(runs[0], run) < 1e-6
        assert result.losses == pytest.approx(results[0].losses, rel=1e-6)
        assert (result.tokens, result.trained_tokens) == (results[0].tokens, results[0].trained_tokens)


def test_the_loss_is_the_mean_over_the_targets_of_the_whole_batch(make_tiny: MakeTiny) -> None:
    tiny = make_tiny(steps=1, micro_batch_size=3)
    setup = tiny.setup
    rows = setup.get_rows(setup.order.batch(0, 0))
    with torch.no_grad():
        sums = [setup.compute_loss(setup.model, setup.collate([row])) for row in rows]
    expected = sum(float(loss.total) for loss in sums) / sum(loss.weight for loss in sums)
    result = fit(setup)
    assert result.losses[0] == pytest.approx(expected, rel=1e-6)
    assert result.tokens == sum(len(row.input_ids) for row in rows)
    assert result.trained_tokens == sum(int((row.weights[1:] > 0).sum()) for row in rows)


def test_twice_the_same_is_byte_equal(make_tiny: MakeTiny) -> None:
    first, second = make_tiny(dropout=0.3), make_tiny(dropout=0.3)
    one, other = fit(first.setup), fit(second.setup)
    assert one.losses == other.losses
    assert first.weights() == second.weights()


def test_another_seed_draws_another_dropout(make_tiny: MakeTiny) -> None:
    first, second = make_tiny(dropout=0.3), make_tiny(dropout=0.3)
    second.setup.seed += 1
    assert fit(first.setup).losses != fit(second.setup).losses


def test_gradient_checkpointing_changes_nothing_but_memory(make_tiny: MakeTiny) -> None:
    plain, recomputed, second = (make_tiny(dropout=0.3, gradient_checkpointing=every) for every in (False, True, 2))
    assert fit(plain.setup).losses == fit(recomputed.setup).losses == fit(second.setup).losses
    assert plain.weights() == recomputed.weights() == second.weights()


def test_gradient_checkpointing_without_layers_is_refused(make_tiny: MakeTiny) -> None:
    tiny = make_tiny(gradient_checkpointing=True)
    tiny.setup.blocks = ()
    with pytest.raises(ModelError, match="has no effect"):
        fit(tiny.setup)


def test_checkpointed_blocks_are_put_back(make_tiny: MakeTiny) -> None:
    blocks = make_tiny().setup.blocks
    marker = blocks[0].forward
    blocks[0].forward = marker
    with checkpointed_blocks(blocks, 1) as count:
        assert count == 2
        assert blocks[0].forward is not marker
    assert vars(blocks[0])["forward"] is marker
    assert "forward" not in vars(blocks[1])


def test_events_follow_the_contract(make_tiny: MakeTiny) -> None:
    tiny = make_tiny(steps=5, evaluate_every=2)
    result = fit(tiny.setup)
    lines = tiny.events.of("train")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    for line in lines:
        assert set(line) >= {"step", "loss", "learning_rate", "grad_norm", "tokens", "trained_tokens", "seconds"}
    assert [line["step"] for line in tiny.events.of("eval")] == [0, 2, 4, 5]
    assert lines[-1]["tokens"] == result.tokens
    assert result.tokens_per_second > 0
    assert result.evaluations[0]["eval_loss"] == tiny.events.of("eval")[0]["eval_loss"]


def test_evaluating_does_not_disturb_training(make_tiny: MakeTiny) -> None:
    often, never = make_tiny(dropout=0.2, evaluate_every=1), make_tiny(dropout=0.2)
    assert fit(often.setup).losses == fit(never.setup).losses


def test_the_best_adapter_is_kept(make_tiny: MakeTiny) -> None:
    tiny = make_tiny(steps=30, evaluate_every=3, learning_rate=0.1)
    result = fit(tiny.setup)
    best = min((step for step in result.evaluations if step), key=lambda step: result.evaluations[step]["eval_loss"])
    assert result.chosen_step == best < 30  # the recipe overfits, or this test shows nothing
    assert tiny.setup.evaluate(0) == result.evaluations[best]
    last = make_tiny(steps=30, evaluate_every=3, learning_rate=0.1, checkpoint=CheckpointConfig(best=None))
    assert fit(last.setup).chosen_step == 30
    assert last.weights() != tiny.weights()


def test_early_stopping(make_tiny: MakeTiny) -> None:
    rule = {"metric": "eval_loss", "patience": 2}
    tiny = make_tiny(steps=60, evaluate_every=2, learning_rate=0.1, early_stopping=rule)
    result = fit(tiny.setup)
    assert result.stopped_early
    assert result.steps < 60
    assert result.chosen_step == result.steps - 4
    assert tiny.events.of("early_stop")


def test_early_stopping_needs_an_evaluation_that_reports_its_metric(make_tiny: MakeTiny) -> None:
    with pytest.raises(RecipeError, match="needs an evaluation"):
        fit(make_tiny(early_stopping={}).setup)
    with pytest.raises(RecipeError, match="names eval_f1"):
        fit(make_tiny(evaluate_every=2, early_stopping={"metric": "eval_f1"}).setup)
    with pytest.raises(RecipeError, match="names eval_f1"):
        fit(make_tiny(evaluate_every=2, checkpoint=CheckpointConfig(best="eval_f1")).setup)


def test_clipping(make_tiny: MakeTiny) -> None:
    free, tight = make_tiny(optimizer="sgd", max_grad_norm=None), make_tiny(optimizer="sgd", max_grad_norm=0.01)
    fit(free.setup)
    fit(tight.setup)
    assert relative_difference(free, tight) > 1e-3
    assert tight.events.of("train")[0]["grad_norm"] > 0.01  # logged as it was before clipping


def test_every_training_key_changes_the_run(make_tiny: MakeTiny) -> None:
    base = fit(make_tiny().setup).losses
    changed = [
        {"batch_size": 4},
        {"learning_rate": 1e-3},
        {"optimizer": "sgd"},
        {"optimizer": {"type": "adamw", "betas": [0.5, 0.9]}},
        {"scheduler": "linear"},
        {"warmup_steps": 5},
        {"warmup_ratio": 0.5},
        {"weight_decay": 0.3},
        {"max_grad_norm": 0.001, "optimizer": "sgd"},
    ]
    seen = [base, *(fit(make_tiny(**options).setup).losses for options in changed)]
    assert len(set(seen)) == len(seen)


def test_a_batch_without_targets_is_an_error(make_tiny: MakeTiny) -> None:
    tiny = make_tiny()
    tiny.setup.weigh = lambda batch: 0.0
    with pytest.raises(DataError, match="no token that carries loss"):
        fit(tiny.setup)


def test_a_micro_batch_without_targets_is_passed_over(make_tiny: MakeTiny) -> None:
    tiny, all_rows = make_tiny(micro_batch_size=1, optimizer="sgd"), make_tiny(micro_batch_size=8, optimizer="sgd")
    for run in (tiny, all_rows):
        run.setup.get_rows(range(22))[0].weights[:] = 0.0
    fit(tiny.setup)
    fit(all_rows.setup)
    assert relative_difference(tiny, all_rows) < 1e-6


class OutOfMemory:
    """A loss that fails as an allocator does for more than `limit` rows at a time."""

    def __init__(self, inner: Any, limit: int, error: Exception) -> None:
        self.inner, self.limit, self.error = inner, limit, error
        self.rows: list[int] = []

    def __call__(self, model: Any, batch: Any) -> Any:
        rows = len(batch["input_ids"])
        if model.training:
            self.rows.append(rows)
            if rows > self.limit:
                raise self.error
        return self.inner(model, batch)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_halves_the_micro_batch(make_tiny: MakeTiny, error: Exception) -> None:
    plain, short = make_tiny(micro_batch_size=8, optimizer="sgd"), make_tiny(micro_batch_size=8, optimizer="sgd")
    short.setup.compute_loss = loss = OutOfMemory(short.setup.compute_loss, 2, error)
    expected, result = fit(plain.setup), fit(short.setup)
    assert result.losses == pytest.approx(expected.losses, rel=1e-6)
    assert relative_difference(plain, short) < 1e-6
    assert loss.rows[:3] == [8, 4, 2]  # found by the probe, before the first step
    assert loss.rows[3:].count(4) == 0
    assert result.micro_batch_size == 2
    assert len(short.events.of("out_of_memory")) == 2
    assert "micro_batch_size 8" in result.warnings[0]


def test_out_of_memory_in_the_middle_of_a_step_repeats_it(make_tiny: MakeTiny) -> None:
    plain, short = make_tiny(micro_batch_size=4, optimizer="sgd"), make_tiny(micro_batch_size=4, optimizer="sgd")
    inner, calls = short.setup.compute_loss, []

    def sometimes(model: Any, batch: Any) -> Any:
        calls.append(0)
        if len(calls) == 11:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(model, batch)

    short.setup.compute_loss = sometimes
    assert fit(short.setup).losses == pytest.approx(fit(plain.setup).losses, rel=1e-6)
    assert relative_difference(plain, short) < 1e-6


def test_out_of_memory_with_one_row_gives_up(make_tiny: MakeTiny) -> None:
    tiny = make_tiny(micro_batch_size=2)
    tiny.setup.compute_loss = OutOfMemory(tiny.setup.compute_loss, 0, MemoryError())
    with pytest.raises(MemoryLimitError, match="one row at a time"):
        fit(tiny.setup)


def test_other_runtime_errors_are_not_taken_for_memory(make_tiny: MakeTiny) -> None:
    tiny = make_tiny(micro_batch_size=2)
    tiny.setup.compute_loss = OutOfMemory(tiny.setup.compute_loss, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit(tiny.setup)


def test_evaluation_out_of_memory(make_tiny: MakeTiny) -> None:
    tiny = make_tiny(evaluate_every=3)

    def fail(step: int) -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    tiny.setup.evaluate = fail
    with pytest.raises(MemoryLimitError, match="evaluation"):
        fit(tiny.setup)


def test_bf16_on_a_cpu(make_tiny: MakeTiny) -> None:
    expected = fit(make_tiny().setup)
    half = make_tiny()
    half.setup.accelerator = build_accelerator(device="cpu", precision="bf16")
    result = fit(half.setup)
    assert result.losses != expected.losses
    assert all(math.isclose(a, b, rel_tol=0.05) for a, b in zip(result.losses, expected.losses, strict=True))


@pytest.mark.parametrize(("device", "precision", "words"), [("cuda", "fp32", "not available"), ("cpu", "fp16", "GPU")])
def test_what_this_machine_has_not(device: str, precision: str, words: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match=words):
        build_accelerator(device=device, precision=precision)
