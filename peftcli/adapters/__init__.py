"""The methods: attach, load, save, disabled, merge, detach on any transformers model, in place. Importing it is cheap.

Begin with `base` (the life of an adapter: built, then initialised or loaded; one mapping of live tensors to keys on disk),
then `layers_method`, `prompts` and `selection`, the three kinds of methods. `surgery` puts one on a model, `reading` and
`saving` are its files, `merging` folds it into the base, `registry` finds it by name. What one method alone does is in
`methods/<name>/`; nothing here names one. How to add one: README.md, "Add a method".
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftcli.adapters.merging import dequantize, merge
    from peftcli.adapters.reading import load
    from peftcli.adapters.saving import save
    from peftcli.adapters.surgery import attach, detach, disabled

__all__ = ["attach", "dequantize", "detach", "disabled", "load", "merge", "save"]

_HOMES = {
    "attach": "surgery",
    "dequantize": "merging",
    "detach": "surgery",
    "disabled": "surgery",
    "load": "reading",
    "save": "saving",
    "merge": "merging",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"peftcli.adapters.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
