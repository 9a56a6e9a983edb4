"""The recipe's `evaluation` and `generation` sections, free of torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from peftcli.errors import FieldFault, RecipeError
from peftcli.evaluation.registry import resolve_metric_name

JSON_PACKAGE = "llguidance"
"""What keeps answers to a JSON schema."""
JSON_EXTRA = "pip install 'peftcli[json]'"
"""How it is installed."""


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class EvaluationConfig(_Section):
    """When and how the model is scored on the validation rows."""

    every: Annotated[int, Field(ge=1)] | None = 100
    """Optimizer steps between evaluations; also once before training (the base model) and once at the end, which is
    all that null does."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows per forward, and prompts per generated batch."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Score at most this many rows, the first ones; null scores all."""
    metrics: Annotated[list[str], Field(min_length=1)] = ["loss"]
    """What to measure, reported as `eval_<name>`; `loss` is always measured. Metrics that compare texts generate an
    answer to every scored row. Where a recipe names none, a task of its own measures what it is judged by."""
    samples: Annotated[int, Field(ge=0)] = 8
    """Generations shown in the report, side by side for base and tuned model."""

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, names: list[str]) -> list[str]:
        resolved = [_resolve(name) for name in names]
        twice = sorted({name for name in resolved if resolved.count(name) > 1})
        if twice:
            raise FieldFault(f"named twice: {', '.join(twice)}")
        return resolved


class GenerationConfig(_Section):
    """How text is written, in reports, metrics, `peft generate` and `peft chat`. What is set here goes with the adapter
    and into what is merged from it, there also into `generation_config.json` for other tools."""

    free_text: ClassVar[tuple[str, ...]] = ("system_prompt", "json_schema")
    """Fields whose text may hold anything, `${...}` too."""

    max_new_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Tokens after which an answer is cut; auto: room for the longest answer of the validation rows and a quarter more
    (at least 64), as far as the context reaches."""
    do_sample: bool = False
    """Draw from the distribution; false takes the likeliest token each time."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """Divides the logits before drawing: below 1 is more careful. Needs `do_sample: true`."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Draw only from the likeliest tokens that together have this probability. Needs `do_sample: true`."""
    system_prompt: str | None = None
    """A system message in front of what `peft generate` and `peft chat` are asked, unless it brings its own; needs a
    chat template. Validation rows are answered as they stand."""

    num_return_sequences: Annotated[int, Field(ge=1, le=1000)] = 1
    """Answers to each prompt of `peft generate`. Needs `do_sample: true`: greedy answers are all the same."""
    json_schema: dict[str, Any] | None = None
    """Every answer is JSON of this schema (https://json-schema.org): no other token can be written. Needs the package
    llguidance."""

    def stated(self) -> dict[str, Any]:
        """The values that are no defaults: what an adapter, and what is merged from it, take along."""
        fields = type(self).model_fields
        return {name: value for name, value in self.model_dump(mode="json").items() if value != fields[name].default}

    def as_generation_config(self) -> dict[str, Any]:
        """The keys of a `generation_config.json` by which other tools write as this section says; none for the
        defaults, beside which a base's own settings stand."""
        length = {} if self.max_new_tokens == "auto" else {"max_new_tokens": self.max_new_tokens}
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p} if self.do_sample else {}
        return length | drawn

    def idle_settings(self) -> list[str]:
        """Warnings for settings that have no effect beside the others."""
        if self.do_sample:
            return []
        idle = [name for name in ("temperature", "top_p", "num_return_sequences") if getattr(self, name) != 1]
        return [f"generation.{name} has no effect without `do_sample: true`" for name in idle]


def _resolve(name: str) -> str:
    try:
        return resolve_metric_name(name)
    except RecipeError as error:
        raise FieldFault(error.message, error.fix) from error
