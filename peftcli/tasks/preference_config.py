"""The recipe's `preference` and `reward` sections, free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from peftcli.errors import FieldFault

LossName = Literal["dpo", "ipo", "hinge", "robust", "orpo", "simpo", "cpo", "kto", "apo_zero", "apo_down"]
REFERENCE_FREE = frozenset({"orpo", "simpo", "cpo"})
"""Losses that look at the trained model alone."""
UNPAIRED = frozenset({"kto", "apo_zero"})
"""Losses of single answers: what an answer was marked as is enough."""
SMOOTHED = frozenset({"dpo", "robust", "cpo", "simpo"})
"""Losses in which some verdicts may be wrong."""
ALWAYS_MEAN = frozenset({"orpo", "simpo"})
"""Losses that are defined by log-probabilities a token."""
MAYBE_MEAN = frozenset({"dpo", "ipo", "hinge", "robust", "cpo"})
"""Losses in which log-probabilities may be taken a token."""
_SFT_WEIGHTS = {"orpo": 1.0, "cpo": 1.0}
"""Losses that train the chosen answer as such beside the comparison."""


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class PreferenceConfig(_Section):
    """How answers are compared; only with `task: preference`."""

    loss: LossName = "dpo"
    """What is minimised: dpo, ipo, hinge, robust, apo_zero and apo_down compare with the model at the start; orpo, simpo and
    cpo look at the trained model alone; kto and apo_zero also take single answers that were marked as good or bad."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How strongly the model is held near the one at the start; for ipo the regularization, for orpo the weight of the odds
    ratio, for simpo and cpo the scale of the rewards."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the pairs whose verdict is thought to be wrong: dpo, robust, cpo and simpo."""
    simpo_gamma: Annotated[float, Field(ge=0)] = 0.5
    """Margin by which the chosen answer's reward should lead: simpo alone."""
    sft_weight: Annotated[float, Field(ge=0)] | None = None
    """Weight of the chosen answer's mean negative log-likelihood a token, beside the comparison; default: 1 for orpo (there
    of the prompt too) and cpo, else 0."""
    length_normalise: bool | None = None
    """Take log-probabilities a token, so that long answers do not weigh more; default: as the loss is defined (orpo, simpo
    and ipo do)."""

    @field_validator("loss", mode="before")
    @classmethod
    def _either_spelling(cls, value: Any) -> Any:
        return value.replace("-", "_") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> PreferenceConfig:
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise FieldFault(
                f"label_smoothing has no meaning for `loss: {self.loss}`", f"leave it out; for {_any(SMOOTHED)} it has"
            )
        if "simpo_gamma" in self.model_fields_set and self.loss != "simpo":
            raise FieldFault(
                f"simpo_gamma has no meaning for `loss: {self.loss}`", "leave it out, or set `loss: simpo`"
            )
        if self.sft_weight and self.loss in UNPAIRED:
            raise FieldFault(
                f"sft_weight has no meaning for `loss: {self.loss}`: rows may have no chosen answer", "leave it out"
            )
        self._check_length()
        return self

    def _check_length(self) -> None:
        wanted, loss = self.length_normalise, self.loss
        if wanted is False and loss in ALWAYS_MEAN:
            raise FieldFault(f"{loss} is defined by log-probabilities a token", "leave length_normalise out")
        if wanted and loss not in ALWAYS_MEAN | MAYBE_MEAN:
            raise FieldFault(
                f"length_normalise has no meaning for `loss: {loss}`",
                f"leave it out; for {_any(ALWAYS_MEAN | MAYBE_MEAN)} it has",
            )

    @property
    def has_reference(self) -> bool:
        """Whether the model at the start is compared with."""
        return self.loss not in REFERENCE_FREE

    @property
    def takes_verdicts(self) -> bool:
        """Whether rows of one answer that was marked as good or bad can be learned."""
        return self.loss in UNPAIRED

    @property
    def needs_drift(self) -> bool:
        """Whether the loss has to know how far the model has gone from the start on answers to other prompts."""
        return self.loss == "kto"

    @property
    def by_token(self) -> bool:
        """Whether log-probabilities are taken a token."""
        if self.length_normalise is not None:
            return self.length_normalise
        return self.loss in ALWAYS_MEAN or self.loss == "ipo"

    @property
    def sft(self) -> float:
        """Weight of the chosen answer's negative log-likelihood."""
        return _SFT_WEIGHTS.get(self.loss, 0.0) if self.sft_weight is None else self.sft_weight

    @property
    def sft_reads_prompts(self) -> bool:
        """Whether that is of the prompt's tokens too."""
        return self.loss == "orpo"


class RewardConfig(_Section):
    """How a reward model is trained; only with `task: reward`."""

    center_rewards_coefficient: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the squared sum of a pair's rewards, which holds their mean at zero (arXiv:2312.09244, eq. 2); 0 leaves the
    level of rewards open."""


def _any(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
