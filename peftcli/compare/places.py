"""Where members train side by side: each GPU takes one at a time; a CPU takes one, unless more are asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from peftcli.planning.machine import resolve_device

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def member_places(device: str, jobs: int | None) -> tuple[Mapping[str, str], ...]:
    """Variables of the environment, one set for each member that trains at a time. `device`: as the recipe says; `jobs`: at
    most so many, and on one device as many as that (None: one each).

    Every GPU that is visible here is seen by one member alone. A member's numbers do not depend on its neighbours, but its
    time does where they share a device.
    """
    gpus = visible_gpus() if resolve_device(device) == "cuda" else []
    if len(gpus) < 2:
        return tuple({} for _ in range(jobs or 1))
    count = jobs or len(gpus)
    return tuple({_VISIBLE: gpus[number % len(gpus)]} for number in range(count))


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that the environment knows them by."""
    named = os.environ.get(_VISIBLE)
    if named is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return [name.strip() for name in named.split(",") if name.strip()][: torch.cuda.device_count()]
