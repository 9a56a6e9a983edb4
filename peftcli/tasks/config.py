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


class EmbeddingConfig(BaseModel):
    """How a model makes one vector of a text, and how vectors are compared; only with `task: embedding`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    pooling: Literal["auto", "mean", "cls", "lasttoken"] = "auto"
    """What of a text's states is its vector: their mean, the first token's or the last one's; auto: as the base's
    sentence-transformers configuration says (modules.json), mean where it has none."""
    normalize: Literal["auto"] | bool = "auto"
    """Whether vectors are brought to length 1 where the model is used; in training cosines are compared in any case.
    auto: as the base's configuration says, true where it has none."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.05
    """Divides the cosines before they compete: 1 over the `scale` of sentence-transformers' losses."""
