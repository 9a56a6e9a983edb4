"""Bounds on what a configuration may ask for while a model is laid out from it: code of somebody else's choosing.

Any number in `config.json` may become a list, a dictionary or a chain of layers, under a key that nobody can list. So
the work itself is watched, not the keys: computing, memory, and how many modules there are.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from peftcli import system
from peftcli.bounded_call import Bounds
from peftcli.errors import ModelError
from peftcli.models.source import describes_sizes

READING = Bounds(10.0, 192 << 20)
"""For a configuration; seconds of computing, not of the clock."""
LAYING_OUT = Bounds(30.0, 1 << 30)
"""For the modules of a model: the largest take a few seconds."""
MAX_MODULES = 150_000
"""More than hundreds of experts in each of a hundred layers are."""


class _TooMuch(BaseException):
    """Not an `Exception`: no handler on the way may keep it."""


@contextlib.contextmanager
def bounded_building(name: str, where: str | None, bounds: Bounds) -> Iterator[None]:
    """Inside, a configuration is read or a model without weights is made. Raises `ModelError` where that never ends."""
    # above the peak so far, which is all the kernel counts: what this process has used before is not held against the
    # model
    most = system.peak_memory_bytes() + bounds.extra_bytes
    # computing, not the clock: a machine that is busy with other work must not refuse a good model
    ends = time.process_time() + bounds.seconds
    modules = 0

    def look() -> None:
        if time.process_time() > ends:
            raise _TooMuch(f"more than {bounds.seconds:g} seconds of computing")
        if system.peak_memory_bytes() > most:
            raise _TooMuch(f"more than {bounds.extra_bytes >> 20:,} MiB of memory")

    def count(module: nn.Module, key: str, part: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > MAX_MODULES:
            raise _TooMuch(f"more than {MAX_MODULES:,} parts")

    hook = register_module_module_registration_hook(count)
    try:
        with system.looking_while_computing(look):
            yield
    except _TooMuch as limit:
        raise ModelError(
            f"config.json of {name} describes a model of {limit}, without its weights",
            where=where,
            fix="do not trust this model; get it from its own page",
        ) from None
    finally:
        hook.remove()


@contextlib.contextmanager
def quiet_about_nothing() -> Iterator[None]:
    """torch warns where it initialises a tensor without values; `require_values` says it in our words."""
    # such a weight is an error here, with the field's name; the warning would come first and say less
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*zero-element.*")
        yield


def require_values(model: nn.Module, name: str, where: str | None, config: Mapping[str, Any]) -> None:
    """Raises `ModelError` for a model that has a weight without a value: a size is zero that no model has so."""
    for path, parameter in model.named_parameters():
        if parameter.numel() == 0:
            shape = " x ".join(map(str, parameter.shape))
            raise ModelError(
                f"config.json of {name} describes a weight without values: `{path}` is {shape}{describes_sizes(config)}",
                where=where,
                fix="download the model again",
            )
