"""The estimate of memory: each part follows from what it is of."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from peftcli.planning.memory import PROCESS_BYTES, MemoryEstimate, Shape, estimate

SHAPE = Shape(
    base_parameters=1_000_000,
    trainable=10_000,
    hidden_size=64,
    intermediate_size=256,
    num_layers=8,
    vocab_size=500,
    bytes_per_element=2,
)


def of(shape: Shape = SHAPE, **changes: object) -> MemoryEstimate:
    settings = {"micro_tokens": 512, "optimizer_tensors": 2.0, "on_cpu": False, "checkpoint_every": 0, **changes}
    return estimate(shape, **settings)  # type: ignore[arg-type]


def test_parts_that_are_counted_exactly() -> None:
    found = of()
    assert found.base_bytes == 2_000_000
    assert found.adapter_bytes == found.gradient_bytes == 40_000  # float32 whatever the base is stored in
    assert found.optimizer_bytes == 80_000
    assert (found.process_bytes, of(on_cpu=True).process_bytes) == (0, PROCESS_BYTES)


def test_the_peak_is_the_sum_of_the_parts() -> None:
    found = of(on_cpu=True)
    assert found.peak_bytes == sum(asdict(found).values()) == found.to_dict()["peak_bytes"]


@pytest.mark.parametrize("field", ["hidden_size", "intermediate_size", "num_layers", "bytes_per_element"])
def test_activations_grow_with_what_is_kept(field: str) -> None:
    larger = replace(SHAPE, **{field: 2 * getattr(SHAPE, field)})
    assert of().activation_bytes < of(larger).activation_bytes <= 2 * of().activation_bytes


def test_activations_and_tokens_are_proportional() -> None:
    assert of(micro_tokens=1024).activation_bytes == 2 * of().activation_bytes


def test_recomputing_more_layers_keeps_less() -> None:
    kept = [of(checkpoint_every=every).activation_bytes for every in (1, 2, 4)]
    assert kept == sorted(kept)
    assert kept[-1] < of().activation_bytes


def test_an_optimizer_without_a_state_takes_nothing() -> None:
    assert of(optimizer_tensors=0.0).optimizer_bytes == 0
