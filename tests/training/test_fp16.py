"""The fp16 scaler without a GPU: torch has one for the CPU, put where Accelerate keeps its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftcli.errors import NumericalError
from peftcli.training.loop import fit

MakeTiny = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("quick_disk")


def half(tiny: Any, scale: float = 2.0**10, growth_interval: int = 4) -> Any:
    accelerator = tiny.setup.accelerator
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_interval)
    accelerator.state._mixed_precision = "fp16"
    return tiny


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_scaled_training_follows_unscaled(make_tiny: MakeTiny, optimizer: str) -> None:
    expected = fit(make_tiny(optimizer=optimizer).setup)
    tiny = half(make_tiny(optimizer=optimizer))
    result = fit(tiny.setup)
    assert all(math.isclose(a, b, rel_tol=0.01) for a, b in zip(result.losses, expected.losses, strict=True))
    norms = [line["grad_norm"] for line in tiny.events.of("train")]
    assert max(norms) < 1.0  # unscaled before clipping and logging
    assert tiny.setup.accelerator.scaler.get_scale() > 2.0**10


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_overflow_is_skipped_and_counted(make_tiny: MakeTiny, optimizer: str) -> None:
    tiny = half(make_tiny(optimizer=optimizer), scale=2.0**26, growth_interval=1000)
    result = fit(tiny.setup)
    skips = tiny.events.of("scaler_skip")
    assert [line["step"] for line in skips] == list(range(1, len(skips) + 1))
    assert 0 < len(skips) < 12
    assert tiny.adapter.calls == sum(range(len(skips) + 1, 13))  # no method's schedule saw a skipped step
    assert all(map(math.isfinite, result.losses))


def test_overflows_are_bounded(make_tiny: MakeTiny) -> None:
    tiny = half(make_tiny(steps=40), scale=2.0**120)
    with pytest.raises(NumericalError, match="overflowed 21 steps in a row, up to step 21"):
        fit(tiny.setup)


def test_the_scale_is_resumed(make_tiny: MakeTiny, tmp_path: Path) -> None:
    whole = half(make_tiny(tmp_path / "whole", steps=12))
    expected = fit(whole.setup)
    first = half(make_tiny(tmp_path / "part", steps=12))
    inner = first.setup.emit

    def stop(event: str, step: int, **facts: Any) -> None:
        inner(event, step, **facts)
        if event == "train" and step == 6:
            raise KeyboardInterrupt

    first.setup.emit = stop
    with pytest.raises(KeyboardInterrupt):
        fit(first.setup)
    resumed = half(make_tiny(tmp_path / "part", steps=12, resume=True), scale=1.0)
    result = fit(resumed.setup)
    assert result.resumed_from == 4
    assert result.losses == expected.losses
    assert resumed.weights() == whole.weights()
