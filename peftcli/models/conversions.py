"""How transformers turns older checkpoints into its present models: which module was renamed, which experts were fused.

Read from transformers' own table (`get_model_conversion_mapping`, since 5.0), here and nowhere else: an adapter that was
trained before names its modules as they were then. Imports fail loudly where a release has moved what is read.
"""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming

_CONVERSION_ERRORS = "conversion_errors"
"""Of transformers' facts of a loading: weight -> traceback and cause."""
_EXPERT = re.compile(r"\.(\d+)\.[^.]+\.weight$")


@dataclass(frozen=True)
class FusedPlace:
    """Where one matrix of one expert of an older checkpoint lies now."""

    parameter: str
    """Path of the fused weight (experts, rows, columns)."""
    expert: int
    part: int
    """Which of the `parts` matrices of an expert that stand below each other in the fused weight."""
    parts: int


def conversion_faults(error: BaseException) -> list[str]:
    """What stopped transformers while it made the model's weights of those that are stored; [] for any other error.

    It logs the causes and raises an error that names none of them, so they are read where they were gathered.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if _CONVERSION_ERRORS in getattr(type(value), "__dataclass_fields__", ()):
                return [str(text) for text in getattr(value, _CONVERSION_ERRORS).values()]
    return []


class Conversions:
    """The conversions of one model; none for what is no transformers model."""

    def __init__(self, model: nn.Module) -> None:
        found = get_model_conversion_mapping(model) if isinstance(model, PreTrainedModel) else []
        self._renamings = [entry for entry in found if isinstance(entry, WeightRenaming)]
        self._fusions = [entry for entry in found if isinstance(entry, WeightConverter) and _fuses_experts(entry)]

    def present_name(self, weight: str) -> str:
        """Name of a weight in the model, from its name in an older checkpoint."""
        for renaming in self._renamings:
            weight, _ = renaming.rename_source_key(weight)
        return str(weight)

    def fused_place(self, weight: str) -> FusedPlace | None:
        """Where the weight of an older checkpoint's expert (`...experts.3.up_proj.weight`) lies, None for any other."""
        weight = self.present_name(weight)
        number = _EXPERT.search(weight)
        for fusion in self._fusions if number else []:
            parameter, source = fusion.rename_source_key(weight)
            # both stated, for a type checker cannot see that the loop is empty without a number
            if source is not None and number is not None:
                sources = list(fusion.source_patterns)
                return FusedPlace(str(parameter), int(number[1]), sources.index(source), len(sources))
        return None

    def former_names(self) -> frozenset[str]:
        """Leaf names that the experts' matrices had before they were fused (`gate_proj`, `w1`)."""
        sources = [source for fusion in self._fusions for source in fusion.source_patterns]
        return frozenset(source.removesuffix(".weight").rsplit(".", 1)[-1] for source in sources)


def _fuses_experts(entry: WeightConverter) -> bool:
    """Whether experts' matrices are stacked, and those of one expert put below each other at most."""
    kinds = [type(operation) for operation in entry.operations]
    return kinds in ([MergeModulelist], [MergeModulelist, Concatenate]) and len(entry.target_patterns) == 1
