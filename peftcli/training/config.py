"""The recipe's `training` and `checkpoint` sections, free of torch: `validate` and `schema` read only this."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from peftcli.errors import FieldFault
from peftcli.kernels.names import KERNELS
from peftcli.training.library_optimizers_config import ScheduleFreeConfig
from peftcli.training.optimizer_config import AdamWConfig, OptimizerConfig

DEFAULT_EPOCHS = 3.0
DEFAULT_WARMUP_RATIO = 0.03

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Betas = Annotated[tuple[Fraction, Fraction], Field(strict=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class CosineConfig(_Section):
    """Half a cosine from the peak rate down to `min_ratio` of it."""

    type: Literal["cosine"] = "cosine"
    """The schedule's name."""
    min_ratio: Fraction = 0.0
    """Share of the peak rate that is left at the end."""


class LinearConfig(_Section):
    """A straight line from the peak rate down to `min_ratio` of it."""

    type: Literal["linear"] = "linear"
    """The schedule's name."""
    min_ratio: Fraction = 0.0
    """Share of the peak rate that is left at the end."""


class ConstantConfig(_Section):
    """The peak rate, after the warm-up."""

    type: Literal["constant"] = "constant"
    """The schedule's name."""


class PolynomialConfig(_Section):
    """A power of the remaining share of steps, down to `min_ratio` of the peak rate."""

    type: Literal["polynomial"] = "polynomial"
    """The schedule's name."""
    power: float = Field(default=2.0, gt=0.0)
    """The exponent; 1 is the straight line."""
    min_ratio: Fraction = 0.0
    """Share of the peak rate that is left at the end."""


class CosineWithRestartsConfig(_Section):
    """Several half cosines, each from the peak rate again (arXiv:1608.03983)."""

    type: Literal["cosine_with_restarts"] = "cosine_with_restarts"
    """The schedule's name."""
    num_cycles: int = Field(default=2, ge=1)
    """Cosines of equal length."""
    min_ratio: Fraction = 0.0
    """Share of the peak rate that is left at the end of each."""


class WSDConfig(_Section):
    """Warm-up, a stable peak, and a decay in the last share of the steps (arXiv:2404.06395)."""

    type: Literal["wsd"] = "wsd"
    """The schedule's name."""
    decay_ratio: float = Field(default=0.2, gt=0.0, le=1.0)
    """Share of all steps that the decay takes."""
    decay: Literal["linear", "cosine", "sqrt"] = "linear"
    """Shape of the decay; `sqrt` is one minus the square root of its progress."""
    min_ratio: Fraction = 0.0
    """Share of the peak rate that is left at the end."""

    def num_decay_steps(self, total_steps: int) -> int:
        """Steps of the decay; at least 1."""
        return max(1, round(self.decay_ratio * total_steps))


def _named(value: Any) -> Any:
    # the short form: a name alone is the section with that type
    section = {"type": value} if isinstance(value, str) else value
    if isinstance(section, dict) and isinstance(section.get("type"), str):
        return {**section, "type": section["type"].replace("-", "_")}
    return section


SchedulerConfig = CosineConfig | LinearConfig | ConstantConfig | PolynomialConfig | CosineWithRestartsConfig | WSDConfig
"""`training.scheduler`: the shape of the learning rate over a run."""


class LengthenedConfig(_Section):
    """A run that was given another length on its way, by `peft resume --set`."""

    after: int = Field(ge=1)
    """Steps that it had taken by then."""
    planned: int = Field(ge=1)
    """Steps that its schedule was made for until then."""
    schedule: Literal["stretch", "constant"]
    """From there: the schedule of the new length (stretch), or the rate of the step before (constant)."""


class EarlyStoppingConfig(_Section):
    """Stops a run whose metric no longer improves."""

    metric: str = "eval_loss"
    """The evaluation metric that is watched."""
    patience: int = Field(default=3, ge=1)
    """Evaluations without improvement before the run stops."""
    min_delta: float = Field(default=0.0, ge=0.0)
    """The least change that counts as an improvement."""


class CheckpointConfig(_Section):
    """When the state of a run is kept, and how much of it."""

    every: int | None = Field(default=100, ge=1)
    """Steps between checkpoints; null: only at the end and on a signal."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints that stay beside the best one; at least the newest."""
    best: str | None = "eval_loss"
    """`adapter/` is the best by this metric; null: the last."""


class TrainingConfig(_Section):
    """How the adapter is trained."""

    epochs: float | None = Field(default=None, gt=0.0, le=1_000_000)
    """Passes over the training rows; 3 where `max_steps` is not given either. One of the two is given, never both."""
    max_steps: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Optimizer steps."""
    batch_size: int = Field(default=16, ge=1)
    """Rows per optimizer step; never changed after your back."""
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Rows per forward pass (with `data.packing`, packs of rows); at most `batch_size`. Halved only after running out of
    memory, as a recorded event."""
    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0.0)] = "auto"
    """Peak learning rate; auto: the method's own rate, scaled to the base's width."""
    optimizer: Annotated[OptimizerConfig, Field(discriminator="type"), BeforeValidator(_named)] = AdamWConfig()
    """A name or a section with its fields: adamw, sgd, adafactor, lion, muon, schedule_free, adamw_8bit, ..."""
    scheduler: Annotated[
        SchedulerConfig, Field(discriminator="type", validate_default=True), BeforeValidator(_named)
    ] = CosineConfig()
    """A name or a section with its fields: cosine, linear, constant, polynomial, cosine_with_restarts, wsd."""
    lengthened: Literal["stretch", "constant"] | list[LengthenedConfig] | None = None
    """What became of the schedule when a run was given another length. `peft resume RUN --set training.epochs=5 --set
    training.lengthened=stretch` (or `constant`) asks for it and writes down what it did; a recipe with that list repeats
    the whole run."""
    warmup_ratio: Fraction | None = None
    """Share of the steps over which the rate rises; 0.03 where `warmup_steps` is not given either."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps over which the rate rises."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Decoupled weight decay of the matrices."""
    max_grad_norm: float | None = Field(default=1.0, ge=0.0)
    """Gradients are scaled down to this norm; null or 0: no clipping."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward and backward pass; adapter weights and optimizer are always float32."""
    gradient_checkpointing: bool | Annotated[int, Field(ge=1)] | Literal["auto"] = False
    """Recompute activations in the backward pass: true for every layer, N for every N-th; auto: where the run would not
    fit the device's memory otherwise."""
    compile: bool = False
    """Compile each layer of the model (torch.compile): slower to begin, faster from then on."""
    kernels: Literal["auto", "off"] | list[str] = "auto"
    """Fast paths of the training passes, each with a plain equivalent: auto takes what this run can use, a list names
    them."""
    processes: int = Field(default=1, ge=1)
    """Processes that train together, each on a device of its own: they share the rows of every batch, whose gradients
    add up to those of one process. Started by a launcher (torchrun, accelerate, srun), the run takes its number."""
    offload: Literal["none", "activations"] = "none"
    """Where the activations of long rows are kept; activations (in host memory) is not supported yet."""
    sharding: Literal["none", "fsdp"] = "none"
    """fsdp: each process holds a part of the base, whose layers are gathered as they compute; for a base beyond one
    device. The adapter is whole in each."""
    neftune_noise_alpha: Annotated[float, Field(gt=0.0)] | None = None
    """Scale of uniform noise on the input embeddings of training passes (NEFTune; 5 is usual); null: none."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """What a non-finite loss or gradient does: stop; skip the batch (at most 3 in 100 steps); go back and skip it."""
    early_stopping: EarlyStoppingConfig | None = None
    """Stop when a metric no longer improves: {metric: eval_loss, patience: 3}."""

    @field_validator("offload")
    @classmethod
    def _no_offload_yet(cls, value: str) -> str:
        if value != "none":
            raise FieldFault(f"offload: {value} is not supported yet", "set gradient_checkpointing: true")
        return value

    @field_validator("kernels")
    @classmethod
    def _known_kernels(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str):
            return value
        known = ", ".join(KERNELS)
        if not value:
            raise FieldFault("names no kernel", f"use off, or a list of: {known}")
        for name in value:
            if name not in KERNELS:
                raise FieldFault(f"there is no kernel {name!r}", f"use auto, off, or a list of: {known}")
        if len(set(value)) < len(value):
            raise FieldFault("names a kernel twice", "name each once")
        return value

    @field_validator("epochs", "learning_rate", "weight_decay", "max_grad_norm", "neftune_noise_alpha")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            raise FieldFault("must be a finite number")
        return value

    @field_validator("micro_batch_size")
    @classmethod
    def _micro_batch_fits(cls, value: str | int, info: ValidationInfo) -> str | int:
        batch_size = info.data.get("batch_size")
        if isinstance(value, int) and isinstance(batch_size, int) and value > batch_size:
            raise FieldFault(f"is larger than batch_size {batch_size}", "lower it, or raise batch_size")
        return value

    @field_validator("warmup_steps")
    @classmethod
    def _one_warmup(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("warmup_ratio") is not None:
            raise FieldFault("warmup_ratio and warmup_steps are two ways to say one thing", "give one of them")
        return value

    @field_validator("scheduler")
    @classmethod
    def _schedule_free_is_constant(cls, value: Any, info: ValidationInfo) -> Any:
        optimizer = info.data.get("optimizer")
        if isinstance(optimizer, ScheduleFreeConfig) and not isinstance(value, ConstantConfig):
            raise FieldFault("optimizer schedule_free replaces the decay of a schedule", "set scheduler: constant")
        return value

    @property
    def lengths(self) -> list[LengthenedConfig]:
        """The earlier lengths of the run, in order; none for most."""
        return self.lengthened if isinstance(self.lengthened, list) else []

    @field_validator("lengthened")
    @classmethod
    def _in_order(cls, value: Any) -> Any:
        steps = [part.after for part in value] if isinstance(value, list) else []
        if steps != sorted(set(steps)):
            raise FieldFault("its parts must follow one another", "put back what the run wrote")
        return value

    def num_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run; at least 1. `steps_per_epoch` counts a last, smaller batch as one."""
        epochs = self.epochs
        if epochs is None:
            if self.max_steps is not None:
                return self.max_steps
            epochs = DEFAULT_EPOCHS
        steps = max(1, math.ceil(epochs * steps_per_epoch - 1e-9))
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def schedule_fault(self, total_steps: int) -> str | None:
        """What is wrong with warm-up and decay in a run of so many steps; None where they fit."""
        warmup = self.num_warmup_steps(total_steps)
        if warmup > total_steps:
            return f"the warm-up takes {warmup} steps, more than the {total_steps} of the run"
        if not isinstance(self.scheduler, WSDConfig):
            return None
        decay = self.scheduler.num_decay_steps(total_steps)
        if warmup + decay > total_steps:
            return f"warm-up ({warmup} steps) and decay ({decay}) together are longer than the run ({total_steps})"
        return None

    def num_warmup_steps(self, total_steps: int) -> int:
        """Steps of warm-up, always fewer than `total_steps` unless `warmup_steps` asks for more."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        ratio = DEFAULT_WARMUP_RATIO if self.warmup_ratio is None else self.warmup_ratio
        return int(ratio * total_steps)
