from __future__ import annotations

import itertools
from typing import Any

import pytest
from pydantic import TypeAdapter
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from peftcli.training.config import SchedulerConfig, TrainingConfig
from peftcli.training.schedules import build_schedule

PARSE: TypeAdapter[Any] = TypeAdapter(SchedulerConfig)


def factors(config: dict[str, Any], total: int, warmup: int = 0) -> list[float]:
    schedule = build_schedule(PARSE.validate_python(config), total_steps=total, warmup_steps=warmup)
    return [schedule(step) for step in range(1, total + 1)]


@pytest.mark.parametrize(
    ("name", "reference"), [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)]
)
def test_decay_is_that_of_transformers(name: str, reference: Any) -> None:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = reference(optimizer, 10, 80)
    ours = factors({"type": name}, 80, 10)
    for step in range(80):
        if step >= 10:
            assert ours[step] == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_warmup_moves_at_once_and_reaches_the_peak() -> None:
    ours = factors({"type": "constant"}, 20, 4)
    assert ours[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_min_ratio_is_the_floor() -> None:
    assert factors({"type": "cosine", "min_ratio": 0.1}, 1000)[-1] == pytest.approx(0.1, abs=1e-5)
    assert factors({"type": "linear", "min_ratio": 0.1}, 1000)[-1] == pytest.approx(0.1, abs=1e-3)


def test_polynomial() -> None:
    assert factors({"type": "polynomial", "power": 1.0}, 50) == factors({"type": "linear"}, 50)
    assert factors({"type": "polynomial", "power": 3.0}, 10)[5] == pytest.approx(0.125)


def test_restarts_begin_at_the_peak_again() -> None:
    ours = factors({"type": "cosine_with_restarts", "num_cycles": 3}, 30)
    assert [ours[0], ours[10], ours[20]] == pytest.approx([1.0] * 3)
    assert ours[9] < 0.05
    assert ours[29] < 0.05


@pytest.mark.parametrize("decay", ["linear", "cosine", "sqrt"])
def test_wsd(decay: str) -> None:
    ours = factors({"type": "wsd", "decay_ratio": 0.25, "decay": decay}, 40, 4)
    assert ours[4:31] == [1.0] * 27
    assert all(earlier > later for earlier, later in itertools.pairwise(ours[30:]))
    assert 0.0 < ours[-1] < 0.2


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "polynomial", "cosine_with_restarts", "wsd"])
def test_every_factor_is_a_share_of_the_peak(name: str) -> None:
    for total, warmup in [(1, 0), (1, 5), (3, 3), (100, 3)]:
        assert all(0.0 <= factor <= 1.0 for factor in factors({"type": name}, total, warmup))
        assert factors({"type": name}, total, warmup)[0] > 0.0


@pytest.mark.parametrize(
    ("config", "total", "fits"),
    [
        ({"warmup_steps": 10, "scheduler": "cosine"}, 10, True),
        ({"warmup_steps": 11, "scheduler": "cosine"}, 10, False),
        ({"warmup_steps": 11, "scheduler": "constant"}, 10, False),
        ({"warmup_ratio": 0.5, "scheduler": {"type": "wsd", "decay_ratio": 0.5}}, 10, True),
        ({"warmup_ratio": 0.5, "scheduler": {"type": "wsd", "decay_ratio": 0.6}}, 10, False),
        ({"warmup_steps": 9, "scheduler": {"type": "wsd", "decay_ratio": 0.2}}, 10, False),
    ],
)
def test_warm_up_and_decay_must_fit_into_the_run(config: dict[str, Any], total: int, fits: bool) -> None:
    fault = TrainingConfig.model_validate(config).schedule_fault(total)
    assert (fault is None) == fits, fault
