"""Every `auto` of a recipe as a value."""

from __future__ import annotations

from dataclasses import dataclass

from peftcli.adapters.learning_rate import auto_rate
from peftcli.data.config import AUTO
from peftcli.data.order import BatchOrder
from peftcli.data.stream_order import StreamOrder
from peftcli.errors import RecipeError
from peftcli.kernels.names import IN_LAYERS, KERNELS, OFF
from peftcli.planning.counts import Counts
from peftcli.planning.fit import Choice
from peftcli.planning.machine import processes_here, resolve_threads
from peftcli.recipe import LoadedRecipe
from peftcli.recipe.rules import SCHEDULE_FIX
from peftcli.training.config import TrainingConfig


@dataclass(frozen=True)
class Resolved:
    """Every `auto` of the recipe as a value. Depends on the recipe, the data, the allowed CPUs and the total memory."""

    device: str
    threads: int
    precision: str
    dtype: str
    micro_batch_size: int
    learning_rate: float
    learning_rate_note: str
    steps: int
    steps_per_epoch: int
    warmup_steps: int
    quantization: str | None = None
    """How the base's linear layers are stored, as asked or since its checkpoint is; None for plain weights."""
    gradient_checkpointing: bool | None = None
    """Whether layers are recomputed, where the recipe leaves it open; None: as the recipe says."""
    kernels: tuple[str, ...] = ()
    """Fast paths of the training passes, in the order of their table; none: every pass is plain."""


def resolve(
    loaded: LoadedRecipe,
    counts: Counts,
    order: BatchOrder | StreamOrder,
    device: str,
    precision: str,
    dtype: str,
    choice: Choice,
    quantization: str | None,
) -> Resolved:
    """What the run uses. Raises `RecipeError` for a schedule or a lengthening that its number of steps cannot have."""
    training = loaded.recipe.training
    rate, rate_note = _learning_rate(loaded, counts.hidden_size)
    steps = training.num_steps(order.steps_per_epoch)
    if training.lengths and training.lengths[-1].after >= steps:
        raise RecipeError(
            f"`training.lengthened` speaks of step {training.lengths[-1].after} of a run of {steps}",
            where="training.lengthened",
            fix="take it out, or give the run its length again",
        )
    if (fault := training.schedule_fault(steps)) is not None:
        raise RecipeError(fault, where="training.scheduler", fix=SCHEDULE_FIX)
    return Resolved(
        device=device,
        threads=resolve_threads(loaded.recipe.threads, processes_here(loaded.recipe)),
        precision=precision,
        dtype=dtype,
        micro_batch_size=choice.micro_batch_size,
        learning_rate=rate,
        learning_rate_note=rate_note,
        steps=steps,
        steps_per_epoch=order.steps_per_epoch,
        warmup_steps=training.num_warmup_steps(steps),
        quantization=quantization,
        gradient_checkpointing=bool(choice.checkpoint_every) if training.gradient_checkpointing == "auto" else None,
        kernels=chosen_kernels(training, counts),
    )


def usable_kernels(training: TrainingConfig, counts: Counts) -> frozenset[str]:
    """What this run can use: inside of compiled layers the compiler makes its own fast paths."""
    return counts.kernels - IN_LAYERS if training.compile else counts.kernels


def chosen_kernels(training: TrainingConfig, counts: Counts) -> tuple[str, ...]:
    """The fast paths of a run: those that it can use, none, or those that the recipe names."""
    if training.kernels == OFF:
        return ()
    wanted = usable_kernels(training, counts) if training.kernels == AUTO else training.kernels
    return tuple(name for name in KERNELS if name in wanted)


def _learning_rate(loaded: LoadedRecipe, hidden_size: int) -> tuple[float, str]:
    """The peak rate, and how it came about."""
    given, optimizer = loaded.recipe.training.learning_rate, loaded.recipe.training.optimizer
    if given != "auto":
        return float(given), "as the recipe says"
    if optimizer.own_rate is not None:
        return optimizer.own_rate, f"{optimizer.type} finds its own step size"
    auto = auto_rate(loaded.recipe.method, hidden_size)
    task = loaded.recipe.learns()
    rate, note = auto.rate, auto.note
    for factor, of in ((task.rate_factor, f"task {task.name}"), (optimizer.rate_factor, optimizer.type)):
        if factor != 1.0:
            rate, note = rate * factor, f"{note}; times {factor:g} for {of}"
    # two digits, so that the product can be written down as the rule's own can
    return (rate if rate == auto.rate * optimizer.rate_factor else float(f"{rate:.2g}")), note
