"""Layers of which the reference reads no adapter, and what is said when a file has one.

It refuses them by name on state-space families, in a recipe of its own (`all-linear`) and in a file alike, since fused
kernels multiply with these weights themselves (peft 0.21, `_check_lora_target_modules_mamba`).
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from peftcli.adapters.oddities import named, tell

_NAMES = frozenset({"out_proj", "conv1d"})
_FAMILIES = frozenset({"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"})


def tell_refused(model: nn.Module, paths: Iterable[str]) -> None:
    """Warns of the adapted layers among `paths` that the reference refuses on this model."""
    if getattr(getattr(model, "config", None), "model_type", None) not in _FAMILIES:
        return
    refused = [path for path in paths if path.rsplit(".", 1)[-1] in _NAMES]
    if refused:
        names = sorted({path.rsplit(".", 1)[-1] for path in refused})
        tell(
            f"Hugging Face PEFT refuses this file on this model, for {named(refused)}; for one that it reads, train with "
            f"exclude_modules: [{', '.join(names)}]"
        )
