"""Sections of a recipe that belong to some tasks only, free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from peftcli.errors import FieldFault
from peftcli.models.heads import MEASURED

ClassWeight = Annotated[float, Field(gt=0)]


class ClassificationConfig(BaseModel):
    """What labels mean and how their loss is weighed; only with a task that learns labels."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    problem_type: Literal["auto", "single_label_classification", "multi_label_classification", "regression"] = "auto"
    """Whether one label applies, any number of them, or labels are measured values; auto: by the rows (lists of labels,
    numbers with a decimal point)."""
    class_weights: Literal["balanced"] | dict[str, ClassWeight] | None = None
    """How much a row of each label counts in training: balanced (rare labels count more), or a number for each name, 1
    for names left out. The evaluation loss weighs all alike."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread over all labels, in training."""
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Focal loss: how much rows count less that the model is sure of, in training; 0 is the plain loss."""

    @field_validator("problem_type", mode="before")
    @classmethod
    def _either_spelling(cls, value: Any) -> Any:
        return value.replace("-", "_") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _settings_agree(self) -> ClassificationConfig:
        if self.label_smoothing and self.focal_gamma:
            raise FieldFault("label_smoothing and focal_gamma pull in opposite directions", "set one of them to 0")
        weighed = [name for name in ("class_weights", "label_smoothing", "focal_gamma") if getattr(self, name)]
        if self.problem_type == MEASURED and weighed:
            raise FieldFault(f"{weighed[0]} has no meaning for `problem_type: {MEASURED}`", "leave it out")
        return self

    @property
    def problem(self) -> str | None:
        """What labels mean; None where the rows are to tell."""
        return None if self.problem_type == "auto" else self.problem_type
