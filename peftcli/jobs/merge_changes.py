"""What a merge does to the folder of its base, known before a weight is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from peftcli.adapters.surgery import disabled
from peftcli.jobs.merge_witness import TypeOf, named_tensors
from peftcli.jobs.opening import OpenModel
from peftcli.models.added_tokens import own_config
from peftcli.models.quantized import without_packed
from peftcli.models.stored import StoredTensor, StoredTypes, main_type, tensors_of_base


@dataclass(frozen=True)
class Changes:
    """What the merge does to the base's folder."""

    base: Mapping[str, StoredTensor]
    """The tensors in the base's files."""
    config_before: dict[str, Any]
    """The model's configuration without the adapter."""
    type_of: TypeOf
    """The type that each tensor of the model is stored in."""
    dtype: torch.dtype | None
    """The type that was asked for; None keeps the base's own."""
    main: torch.dtype
    """The type that most of the base's values have."""

    def type_of_carried(self, tensor: StoredTensor) -> torch.dtype | None:
        """Of a tensor that no part of the model owns."""
        if self.dtype is None or not tensor.is_float:
            return None
        apart = tensor.dtype == torch.float32 and self.main != torch.float32
        return None if apart and self.dtype != torch.float32 else self.dtype


def changes_of(
    opened: OpenModel, dtype: torch.dtype | None, kept_apart: Callable[[torch.dtype], Callable[[str], bool]]
) -> Changes:
    """`dtype`: of the merged weights, None for that of each in the base's files. `kept_apart`: in a model of a type ->
    whether the family keeps a tensor in float32 there (biases of routers)."""
    base = without_packed(tensors_of_base(opened.source))
    main = main_type(base)
    stored = StoredTypes(base, [name for name, _ in named_tensors(opened.model)])
    narrow = dtype is not None and dtype != torch.float32
    apart = kept_apart(dtype) if narrow and main == torch.float32 and dtype is not None else lambda name: False

    def type_of(name: str) -> torch.dtype:
        own = stored.of(name)
        if dtype is None or not own.is_floating_point:
            return own
        kept = narrow and own == torch.float32 and (main != torch.float32 or apart(name))
        return torch.float32 if kept else dtype

    with disabled(opened.model):
        config = own_config(opened.model)
    return Changes(base, config, type_of, dtype, main)
