"""Passes on the meta device: what torch and the releases of transformers ask there has an answer."""

from __future__ import annotations

import pytest
import torch

from peftcli.models.meta import without_autocast, without_values


def test_autocast_is_off_on_the_meta_device_and_as_it_was_elsewhere() -> None:
    asked = torch.is_autocast_enabled
    with without_autocast(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.is_autocast_enabled("meta")
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled() is asked()
    with pytest.raises(ZeroDivisionError), without_values():
        raise ZeroDivisionError
    assert torch.is_autocast_enabled is asked


def test_what_depends_on_values_runs_through() -> None:
    numbers = torch.empty(3, device="meta")
    with without_values():
        assert numbers[0] > 0
        assert int(numbers.long().max()) == 1
        assert numbers[numbers > 0].shape == (3,)
        assert numbers.nonzero().shape == (3, 1)
    with pytest.raises(RuntimeError):
        bool(numbers[0] > 0)
