"""Fields of HRA (arXiv:2405.17484), under the names of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftcli.adapters.target_config import TARGET_DEFAULTS, TargetedConfig
from peftcli.errors import FieldFault


class HraConfig(TargetedConfig):
    """Each layer's input is mirrored r times, at planes that are trained."""

    name: ClassVar[str] = "hra"
    summary: ClassVar[str] = "a chain of r Householder reflections of each layer's input"
    peft_type: ClassVar[str] = "HRA"
    in_peft: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 3.5e-3
    size_fields: ClassVar[tuple[str, ...]] = ("r",)
    file_defaults: ClassVar[Mapping[str, Any]] = {
        **TARGET_DEFAULTS,
        "r": 8,
        "apply_GS": False,
        "init_weights": True,
        "bias": "none",
    }

    r: Annotated[int, Field(ge=1)] = 8
    """Number of reflections."""
    apply_GS: bool = False
    """Reflect at planes that are made orthogonal to one another (Gram-Schmidt); needs init_weights: false."""
    init_weights: bool = True
    """Start as the base: each two reflections cancel out, so r is even; false starts at random."""
    bias: Literal["none", "all", "hra_only"] = "none"
    """Which of the base's biases are trained too."""

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.init_weights and self.apply_GS:
            raise FieldFault(
                "apply_GS cannot start as the base: orthogonal reflections never cancel; init_weights: false"
            )
        if self.init_weights and self.r % 2:
            raise FieldFault(f"init_weights: true needs an even r, found {self.r}: reflections cancel in pairs")
        return self

    @classmethod
    def idle_fields(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        # the reference starts such an adapter at random, whatever the field says; a trained one holds no start
        r = document.get("r", cls.file_defaults["r"])
        unpaired = isinstance(r, int) and r % 2 == 1
        return {"init_weights": False} if document.get("apply_GS") or unpaired else {}
