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
from peftcli.models.structure import input_embedding, output_embedding
from peftcli.models.view import shown_folder


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
    if _holds_its_head_apart(model, source):
        _untie_head(model)
    stored = quantization_of(model.config.to_dict())  # type: ignore[union-attr, operator]
    if stored is not None:
        plan_quantization(model, stored.storage, stored.kept)
    if quantization is not None:
        require_unpacked(model, source.name, quantization)
        plan_quantization(model, quantization)
    return model


def _holds_its_head_apart(model: nn.Module, source: BaseSource) -> bool:
    """Whether a base says that its head is a matrix of its own, though its family is laid out with one that is shared
    (T5): transformers shares it only while the files are read, where they lack it or hold the same values twice."""
    with shown_folder(source, weights=False) as shown:
        apart = shown.config.get("tie_word_embeddings") is False
    return apart and bool(getattr(model.config, "tie_word_embeddings", False))


def _untie_head(model: nn.Module) -> None:
    head, table = output_embedding(model), input_embedding(model)
    if head is not None and table is not None and head.weight is table.weight:
        head.weight = nn.Parameter(torch.empty_like(head.weight))  # type: ignore[arg-type]


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
