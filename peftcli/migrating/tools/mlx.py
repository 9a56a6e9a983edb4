"""mlx-lm's YAML (`mlx_lm.lora --config`). Defaults written out are those of mlx-lm 0.29."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.migrating.draft import Draft
from peftcli.migrating.tools import shared_words

NAME = "mlx-lm"
_SCHEDULES = {"cosine_decay": "cosine", "linear_schedule": "linear"}


def is_one(given: Mapping[str, Any]) -> bool:
    """Its own section of LoRA's fields, or its word for the kind of training."""
    return "lora_parameters" in given or "fine_tune_type" in given


def carry(draft: Draft) -> None:
    """Model, data (a folder with train.jsonl and valid.jsonl), method, training."""
    draft.same({"model": "model.base", "max_seq_length": "data.max_length"})
    draft.assume("data.max_length", 2048, "the default there")
    if isinstance(folder := draft.look("data"), str):
        draft.put("data", "data.train", f"{folder}/train.jsonl")
        draft.recipe["data.validation"] = f"{folder}/valid.jsonl"
    if draft.look("mask_prompt") is not True:
        draft.assume("data.train_on", "all", "mlx-lm trains on prompts unless `mask_prompt` is true")
    draft.idle({"mask_prompt": (True,)}, "completions alone, as here")
    _method(draft)
    _training(draft)
    draft.without(
        {
            "train": "`peft train` trains",
            "test": "`peft evaluate`",
            "adapter_path": "`peft train --output` says it",
            "steps_per_report": "every step is logged",
            "test_batches": "`peft evaluate`",
            "resume_adapter_file": "model.init_adapter",
        }
    )


def _method(draft: Draft) -> None:
    kind = draft.look("fine_tune_type") or "lora"
    draft.put("fine_tune_type", "method.type", kind) if draft.has("fine_tune_type") else draft.recipe.update(
        {"method.type": kind}
    )
    if kind == "full":
        draft.drop("lora_parameters", "all weights are trained")
        return
    rank = int(draft.look("lora_parameters.rank") or 8)
    scale = shared_words.number(draft.look("lora_parameters.scale"))
    scale = 20.0 if scale is None else scale
    draft.put("lora_parameters.rank", "method.r", rank) if draft.has("lora_parameters.rank") else draft.assume(
        "method.r", 8, "the default there"
    )
    # its scale is the factor itself
    if draft.has("lora_parameters.scale"):
        draft.put("lora_parameters.scale", "method.lora_alpha", scale * rank, f"scale {scale:g} x rank {rank}")
    else:
        draft.assume("method.lora_alpha", scale * rank, f"scale {scale:g}, the default there, x rank {rank}")
    draft.same({"lora_parameters.dropout": "method.lora_dropout"}, shared_words.number)
    if keys := draft.look("lora_parameters.keys"):
        draft.put("lora_parameters.keys", "method.target_modules", [str(key).rsplit(".", 1)[-1] for key in keys])
    layers = draft.look("num_layers")
    if layers == -1:
        draft.drop("num_layers", "every layer, as here")
        return
    count = 16 if layers is None else layers
    draft.drop("num_layers", "`method.layers_to_transform` names layers by their number")
    draft.to_do.append(f"method.layers_to_transform: the last {count} layers are adapted there, all of them here")


def _training(draft: Draft) -> None:
    shared_words.batch(draft, "batch_size", "grad_accumulation_steps", 4)
    draft.same({"iters": "training.max_steps"}, lambda value: int(shared_words.number(value)))
    draft.assume("training.max_steps", 1000, "the default there")
    name = draft.look("lr_schedule.name")
    arguments = draft.look("lr_schedule.arguments")
    peak = arguments[0] if isinstance(arguments, list) and arguments else None
    if name in _SCHEDULES:
        draft.put("lr_schedule.name", "training.scheduler", _SCHEDULES[name])
    else:
        draft.assume("training.scheduler", "constant", "the rate is constant there unless a schedule is named")
    if peak is not None:
        draft.put(
            "lr_schedule.arguments",
            "training.learning_rate",
            shared_words.number(peak),
            "its first number; the decay ends with the run",
        )
        draft.drop("learning_rate", "the schedule's rules")
    draft.same({"learning_rate": "training.learning_rate"}, shared_words.number)
    draft.assume("training.learning_rate", 1e-5, "the default there")
    if steps := draft.look("lr_schedule.warmup"):
        draft.put("lr_schedule.warmup", "training.warmup_steps", int(steps))
    draft.assume("training.warmup_steps", 0, "none there")
    shared_words.optimizer(draft, "optimizer")
    if draft.look("grad_checkpoint") is True:
        draft.put("grad_checkpoint", "training.gradient_checkpointing", True)
    draft.idle({"grad_checkpoint": (False,)})
    draft.same({"seed": "seed", "steps_per_eval": "evaluation.every", "save_every": "checkpoint.every"})
    draft.assume("checkpoint.best", None, "the last adapter is kept there")
    draft.assume("training.max_grad_norm", None, "gradients are not clipped there")
    draft.drop("val_batches", "evaluation.rows caps the rows that are scored")
