"""The recipe as a type: it composes the sections, whose classes live in the rooms that they configure."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator, model_validator

from peftcli.adapters.config import MethodConfig
from peftcli.adapters.registry import parse_method
from peftcli.data.config import DataConfig
from peftcli.errors import FieldFault, RecipeError
from peftcli.evaluation.config import EvaluationConfig, GenerationConfig
from peftcli.models.config import ModelConfig
from peftcli.recipe.expectations import parse_gate
from peftcli.tasks.base import Task
from peftcli.tasks.config import ClassificationConfig, EmbeddingConfig
from peftcli.tasks.preference_config import PreferenceConfig, RewardConfig
from peftcli.tasks.registry import DEFAULT_TASK, resolve_task_name
from peftcli.tasks.registry import task as find_task
from peftcli.training.config import CheckpointConfig, TrainingConfig
from peftcli.training.tracker_names import require_tracker

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What may name a run: it becomes a folder, on every file system."""
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
SHORT_FORMS = {"model": "base", "data": "train", "method": "type"}
"""The sections that may be written as one value, and the key that the value then is."""


def _method(value: Any) -> Any:
    if isinstance(value, (str, dict)):
        try:
            return parse_method(value)
        except RecipeError as error:
            raise FieldFault(error.message, error.fix) from error
    return value


def _section(key: str) -> BeforeValidator:
    def expand(value: Any) -> Any:
        return {key: value} if isinstance(value, (str, list)) else value

    return BeforeValidator(expand)


Method = Annotated[
    MethodConfig,
    BeforeValidator(_method),
    PlainSerializer(lambda config: config.to_recipe(), return_type=dict[str, Any]),
]


class Recipe(BaseModel):
    """A whole recipe with every default filled in. `load_recipe` makes one from a file."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    version: Literal[1] = 1
    """Version of the recipe format."""
    extends: str | None = None
    """Another recipe that is deep-merged under this one: a file, relative to this one, or `owner/name@revision`, the recipe
    of a repository of the Hub."""
    name: str | None = None
    """Name of the run: letters, digits, dot, dash, underscore. Default: the recipe's file name."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    """Seed of everything that is random."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Repeat the run with this many seeds (seed, seed + 1, ...) and report mean and interval."""
    task: str = DEFAULT_TASK
    """What is learned: causal-lm, seq2seq-lm, sequence-classification, token-classification, preference, reward,
    embedding."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto: the first GPU, else the CPU."""
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = "auto"
    """CPU threads; auto: the CPUs that this process may use, never depending on load."""
    model: Annotated[ModelConfig, _section("base")]
    """The base model: its name alone, or the section."""
    data: Annotated[DataConfig, _section("train")]
    """What to train on: a source alone, or the section."""
    method: Method
    """How to adapt the base: a name from `peft methods` alone, or a section with `type` and the method's own fields."""
    training: TrainingConfig = TrainingConfig()
    """How the adapter is trained."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """When and how the model is scored on the validation rows."""
    generation: GenerationConfig = GenerationConfig()
    """How text is written, in reports, metrics, `peft generate` and `peft chat`. What is set here goes with the adapter
    and into what is merged from it, there also into `generation_config.json` for other tools."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state of a run is kept, and how much of it."""
    classification: ClassificationConfig | None = None
    """What labels mean and how their loss is weighed; only with a task that learns labels."""
    preference: PreferenceConfig | None = None
    """How answers are compared; only with `task: preference`."""
    reward: RewardConfig | None = None
    """How a reward model is trained; only with `task: reward`."""
    embedding: EmbeddingConfig | None = None
    """How a model makes one vector of a text, and how vectors are compared; only with `task: embedding`."""
    tracking: list[str] = []
    """Experiment trackers through Accelerate: tensorboard, wandb (offline unless WANDB_MODE says otherwise), mlflow,
    trackio, ... Each needs its package."""
    expect: dict[str, str] = {}
    """Gates on the final metrics, such as `{eval_loss: "< 1.2"}` or `"< 0.8 * base"`; one that is not met ends the run
    with exit code 10."""
    output: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """The run folder, relative to the working directory. Default: runs/<name>-001, -002, ..."""

    def learns(self) -> Task:
        """The task under its own section of the recipe. Free of torch."""
        found = find_task(self.task)
        options = None if found.options is None else getattr(self, found.options)
        return found if options is None else found.with_options(options)

    @model_validator(mode="before")
    @classmethod
    def _metrics_of_the_task(cls, data: Any) -> Any:
        """Where the recipe names no metrics, those of its task are measured."""
        if not isinstance(data, dict) or not isinstance(name := data.get("task", DEFAULT_TASK), str):
            return data
        section = data.get("evaluation", {})
        if not isinstance(section, dict) or "metrics" in section:
            return data
        try:
            metrics = list(find_task(name).default_metrics)
        except RecipeError:
            return data  # told at the task itself
        return {**data, "evaluation": {**section, "metrics": metrics}}

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str | None) -> str | None:
        if value is None or (NAME_PATTERN.fullmatch(value) and value.split(".")[0].lower() not in _RESERVED):
            return value
        raise FieldFault("must be 1 to 64 letters, digits, dots, dashes or underscores, the first a letter or digit")

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str) -> str:
        try:
            return resolve_task_name(value)
        except RecipeError as error:
            raise FieldFault(error.message, error.fix) from error

    @field_validator("tracking")
    @classmethod
    def _known_trackers(cls, value: list[str]) -> list[str]:
        for name in value:
            require_tracker(name)
        return value

    @field_validator("expect")
    @classmethod
    def _gates(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            try:
                parse_gate(text)
            except FieldFault as error:
                raise FieldFault(f"{name}: {error.message}", error.fix) from error
        return value

    @field_validator("output")
    @classmethod
    def _printable(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise FieldFault("must be a path of printable characters")
        return value
