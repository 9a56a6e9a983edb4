"""What several tools say in the same words: optimizers, schedules, types, batches, attention, LoRA's fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from peftcli.migrating.draft import Draft
from peftcli.recipe.foreign_names import foreign_values
from peftcli.training.config import SchedulerConfig
from peftcli.training.optimizer_config import OptimizerConfig

ONE_DEVICE = "a step's rows on one device: their file does not say on how many it ran"


def _types(union: Any) -> tuple[str, ...]:
    return tuple(name for section in get_args(union) for name in get_args(section.model_fields["type"].annotation))


def number(value: Any) -> Any:
    """`1e-4` without a point is text to YAML, and a number to everybody else."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def optimizer(draft: Draft, theirs: str, fields: Mapping[str, str] | None = None) -> None:
    """Their optimizer by name, with the fields (theirs -> ours) that it has here."""
    said = str(draft.look(theirs) or "").lower().replace("_8bit_bnb", "_bnb_8bit")
    name = foreign_values()["training.optimizer"].get(said, said)
    if said and name not in _types(OptimizerConfig):
        draft.drop(theirs, "no optimizer here has that name; adamw is taken")
    given = {
        ours: tuple(number(one) for one in value) if isinstance(value := draft.look(key), list) else number(value)
        for key, ours in (fields or {}).items()
        if draft.has(key)
    }
    for key in fields or {}:
        if draft.has(key):
            draft.put(key, "training.optimizer", draft.look(key))
    _betas(given)
    section = {"type": name, **given} if given else name
    if draft.has(theirs):
        draft.put(theirs, "training.optimizer", section)
    elif given:
        draft.recipe["training.optimizer"] = {"type": "adamw", **given}


def _betas(given: dict[str, Any]) -> None:
    """Two numbers under two names are one pair here; the one that is not said is the usual one."""
    if "beta1" in given or "beta2" in given:
        given["betas"] = [given.pop("beta1", 0.9), given.pop("beta2", 0.999)]
    elif "betas" in given:
        given["betas"] = list(given["betas"])


def scheduler(draft: Draft, theirs: str) -> None:
    """Their schedule by name."""
    if not draft.has(theirs):
        return
    said = str(draft.look(theirs)).lower()
    name = foreign_values()["training.scheduler"].get(said, said)
    if name in _types(SchedulerConfig):
        draft.put(theirs, "training.scheduler", name)
    else:
        draft.drop(theirs, f"no schedule here has that name; one of {', '.join(_types(SchedulerConfig))}")


def warmup(draft: Draft, ratio: str = "warmup_ratio", steps: str = "warmup_steps") -> None:
    """Steps, or their share where both are said: a count above zero rules in the other tools too."""
    count = number(draft.look(steps))
    if isinstance(count, float) and 0 < count < 1:
        draft.put(steps, "training.warmup_ratio", count)
        draft.drop(ratio, f"`{steps}` rules")
    elif count:
        draft.put(steps, "training.warmup_steps", int(count))
        draft.drop(ratio, f"`{steps}` rules")
    elif draft.has(ratio):
        draft.put(ratio, "training.warmup_ratio", number(draft.look(ratio)))
        draft.idle({steps: (0,)}, "the share rules")
    elif count == 0:
        draft.put(steps, "training.warmup_steps", 0)


def batch(draft: Draft, rows: str, accumulation: str | None, default_rows: int, default_accumulation: int = 1) -> None:
    """Rows of a forward pass, and of an optimizer step as their product with the accumulation."""
    each = int(number(draft.look(rows) or default_rows))
    times = int(number((draft.look(accumulation) if accumulation else None) or default_accumulation))
    if draft.has(rows):
        draft.put(rows, "training.micro_batch_size", each)
    else:
        draft.assume("training.micro_batch_size", each, "rows of a forward pass there, where none are named")
    if accumulation and draft.has(accumulation):
        draft.put(accumulation, "training.batch_size", each * times, f"{each} x {times}; {ONE_DEVICE}")
    else:
        draft.assume("training.batch_size", each * times, f"{each} x {times}; {ONE_DEVICE}")


def precision(draft: Draft, names: Mapping[str, str]) -> None:
    """Switches such as `bf16: true`, each with the precision that it stands for; the first that is on."""
    for theirs, ours in names.items():
        value = draft.look(theirs)
        if value in (True, "true", "auto") and "training.precision" not in draft.recipe:
            draft.put(theirs, "training.precision", "auto" if value == "auto" else ours)
        elif draft.has(theirs):
            draft.drop(theirs, "off" if value in (False, "false") else "another one rules")


def attention(draft: Draft, names: Sequence[str]) -> None:
    """Faster attention by another kernel changes rounding alone: the fastest that is exact is taken here anyway."""
    for theirs in names:
        draft.drop(
            theirs, "left out: the fastest exact attention that is here is taken by itself (model.attention: auto)"
        )


def quantized(draft: Draft, four: str = "load_in_4bit", eight: str = "load_in_8bit") -> None:
    """The base packed in 4 or 8 bits."""
    for theirs, ours in ((four, "nf4"), (eight, "int8")):
        if draft.look(theirs) is True:
            draft.put(theirs, "model.quantization", ours)
    draft.idle({four: (False,), eight: (False,)})


LORA: Mapping[str, str] = {
    "lora_r": "method.r",
    "lora_rank": "method.r",
    "lora_alpha": "method.lora_alpha",
    "lora_dropout": "method.lora_dropout",
}


def lora(draft: Draft, *, rank: int, alpha: float | None, dropout: float, why: str) -> None:
    """LoRA's fields; what their file leaves out is their default, written out. `alpha` None: twice the rank."""
    draft.recipe.setdefault("method.type", "lora")
    draft.same(LORA, number)
    draft.assume("method.r", rank, why)
    draft.assume("method.lora_alpha", 2 * draft.recipe["method.r"] if alpha is None else alpha, why)
    draft.assume("method.lora_dropout", dropout, why)


def targets(value: Any) -> Any:
    """Module names as a list, or all linear layers."""
    if isinstance(value, str) and "," in value:
        value = [part.strip() for part in value.split(",")]
    if value in ("all", "all-linear", ["all"], ["all-linear"]):
        return "all-linear"
    return [value] if isinstance(value, str) and value.isidentifier() else value
