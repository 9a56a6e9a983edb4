"""The modules of a base without its weights."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from peftcli.models.architectures import auto_class_named, require_architecture
from peftcli.models.base_config import load_config
from peftcli.models.building import LAYING_OUT, bounded_building, quiet_about_nothing, require_values
from peftcli.models.heads import LabelHead
from peftcli.models.loading_errors import loading_errors
from peftcli.models.poolers import without_pooler
from peftcli.models.quantization import (
    plan_quantization,
    require_unpacked,
)
from peftcli.models.source import (
    BaseSource,
)
from peftcli.models.storage_names import quantization_of


def meta_model(
    source: BaseSource,
    *,
    auto_class: str = "AutoModelForCausalLM",
    quantization: str | None = None,
    head: LabelHead | None = None,
    pooler: bool = False,
) -> nn.Module:
    """The model without weights (every tensor on the meta device): structure and exact parameter counts. Layers that
    will be packed, as asked or since the checkpoint is, are marked as such.

    `head`: its labels, where they are not the base's own. `pooler`: as for `load_model`.
    """
    model = laid_out(source, torch.device("meta"), auto_class=auto_class, head=head, pooler=pooler)
    stored = quantization_of(model.config.to_dict())  # type: ignore[union-attr, operator]
    if stored is not None:
        plan_quantization(model, stored.storage, stored.kept)
    if quantization is not None:
        require_unpacked(model, source.name, quantization)
        plan_quantization(model, quantization)
    return model


def laid_out(
    source: BaseSource,
    placing: contextlib.AbstractContextManager[Any],
    *,
    auto_class: str,
    head: LabelHead | None = None,
    pooler: bool = False,
    **settings: Any,
) -> nn.Module:
    """The modules of a base, no value of its files read; `placing` says where tensors are made, `settings` go to
    transformers."""
    config = load_config(source)
    if head is not None:
        head.write_to(config)
    require_architecture(source, config, auto_class)
    where = source.location if source.is_local else None
    with (
        loading_errors(source, "the structure"),
        bounded_building(source.name, where, LAYING_OUT),
        quiet_about_nothing(),
        placing,
    ):
        left_out = without_pooler(auto_class, config, pooler=pooler)
        model: nn.Module = auto_class_named(auto_class).from_config(config, **settings, **left_out)
    require_values(model, source.name, where, config.to_dict())
    model.tie_weights()  # type: ignore[operator]
    return model
