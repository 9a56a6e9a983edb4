"""Fields of AdaLoRA (arXiv:2303.10512), under the names of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftcli.adapters.file_values import ANY_NUMBER, SHARE, Bounds
from peftcli.adapters.methods.adalora.file_fields import FILE_DEFAULTS, IDLE_VARIANTS, REFUSED_VARIANTS
from peftcli.adapters.target_config import TargetedConfig
from peftcli.errors import FieldFault


class AdaloraConfig(TargetedConfig):
    """LoRA as singular triplets B diag(E) A; the least important are pruned while training, over all layers together."""

    name: ClassVar[str] = "adalora"
    summary: ClassVar[str] = "low-rank triplets whose ranks are given out by importance while training"
    peft_type: ClassVar[str] = "ADALORA"
    in_peft: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 2e-2
    size_fields: ClassVar[tuple[str, ...]] = ("init_r",)
    file_defaults: ClassVar[Mapping[str, Any]] = FILE_DEFAULTS
    file_bounds: ClassVar[Mapping[str, Bounds]] = {"lora_alpha": ANY_NUMBER, "lora_dropout": SHARE}
    refused_variants: ClassVar[Mapping[str, str]] = REFUSED_VARIANTS
    idle_variants: ClassVar[Mapping[str, str]] = IDLE_VARIANTS

    target_r: Annotated[int, Field(ge=1)] = 8
    """Mean rank that is left in the end."""
    init_r: Annotated[int, Field(ge=1)] = 12
    """Rank that every layer starts with."""
    lora_alpha: Annotated[int | float, Field(gt=0, allow_inf_nan=False)] = 32
    """Numerator of the scale lora_alpha / init_r."""
    lora_dropout: Annotated[int | float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the update, while training."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which of the base's biases are trained too."""
    tinit: Annotated[int, Field(ge=0)] | None = None
    """Steps before pruning begins; null: a tenth of the run."""
    tfinal: Annotated[int, Field(ge=0)] | None = None
    """Steps after pruning has ended; null: three tenths of the run."""
    deltaT: Annotated[int, Field(ge=1)] = 1
    """Steps between two prunings."""
    beta1: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """Smoothing of the importance."""
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """Smoothing of its uncertainty."""
    orth_reg_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """Weight of the term that keeps A and B orthogonal."""
    total_step: Annotated[int, Field(ge=1)] | None = None
    """Steps of the schedule; null: those of the run."""
    init_lora_weights: bool = True
    """Start as the base (E zero); false starts E at random."""
    rank_pattern: dict[str, list[bool]] | None = None
    """Which triplets of each layer are left, once pruning has ended; written when saving."""

    def tunable(self) -> Mapping[str, Sequence[Any]]:
        return {"orth_reg_weight": (self.orth_reg_weight / 5, self.orth_reg_weight * 5)} if self.orth_reg_weight else {}

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.target_r > self.init_r:
            raise FieldFault(f"target_r ({self.target_r}) is above init_r ({self.init_r}): ranks only shrink")
        if self.total_step is not None and (self.tinit or 0) + (self.tfinal or 0) >= self.total_step:
            raise FieldFault("tinit + tfinal leaves no step for pruning before total_step")
        return self

    @classmethod
    def idle_fields(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        # inherited from LoRA, where it may name a start; here any name is a start as the base
        how = document.get("init_lora_weights")
        return {"init_lora_weights": bool(how)} if isinstance(how, str) else {}
