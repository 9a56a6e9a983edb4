"""The methods: attach, load, save, disabled, merge, detach on any transformers model, in place. Importing it is cheap."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftcli.adapters.merging import merge
    from peftcli.adapters.storage import load, save
    from peftcli.adapters.surgery import attach, detach, disabled

__all__ = ["attach", "detach", "disabled", "load", "merge", "save"]

_HOMES = {
    "attach": "surgery",
    "detach": "surgery",
    "disabled": "surgery",
    "load": "storage",
    "save": "storage",
    "merge": "merging",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"peftcli.adapters.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
