"""Full fine-tuning: every parameter of the base is trained, in float32 copies.

    y = f(x; W + delta)        stored as the full new W

The copies cost the memory of the weights once more; for it, a base in bfloat16 is trained with float32 masters, the
base's answer stays at hand (`disabled`), and taking the method out gives the base back exactly. Tied tensors are one
copy, trained as one and written once.
Shapes: as the base's. Keys: the plain names of the base's parameters, after `base_model.model.`. Not in the reference
library.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from peftcli.adapters.base import Shapes
from peftcli.adapters.base_modules import named_base_modules
from peftcli.adapters.methods.full.config import FullConfig
from peftcli.adapters.selection import ModulesMethod


class Full(ModulesMethod[FullConfig]):
    """Wraps every module with parameters of its own."""

    config_class = FullConfig

    def trained(self, model: nn.Module, config: FullConfig, shapes: Shapes | None) -> Iterable[str]:
        return [path for path, _ in named_base_modules(model)]


METHOD = Full()
