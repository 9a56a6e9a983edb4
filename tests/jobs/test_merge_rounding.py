"""How much of an update a type leaves: what the base loses by it is no loss of the update."""

from __future__ import annotations

import pytest
import torch

from peftcli.jobs.merge_rounding import Survival, measure


def share(update: float, base: torch.dtype) -> float:
    """Of a random update of that size on a weight of a type, which is merged and stored in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    before = (torch.randn(256, 256, generator=generator) * 0.02).to(base)
    after = before.float() + update * torch.randn(256, 256, generator=generator)
    found = Survival()
    measure(found, "weight", before, after, after.bfloat16(), torch.bfloat16)
    return found.kept["weight"] / found.exact["weight"]


@pytest.mark.parametrize("update", [1e-5, 1e-4, 1e-3])
def test_a_base_that_is_rounded_too_carries_the_update(update: float) -> None:
    """Each value of it moves by a whole unit, or not at all, as often as the update is large."""
    assert share(update, torch.float32) == pytest.approx(1.0, abs=0.05)


def test_a_base_of_that_type_swallows_a_small_update() -> None:
    assert share(1e-6, torch.bfloat16) < 0.2
    assert share(1e-3, torch.bfloat16) == pytest.approx(1.0, abs=0.05)
