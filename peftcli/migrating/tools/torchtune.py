"""torchtune's YAML. Defaults written out are those of torchtune 0.6."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from peftcli.migrating.draft import Draft
from peftcli.migrating.tools import shared_words

NAME = "torchtune"
_PARTS = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "o_proj"}
"""Its names of attention's layers -> those of the checkpoints."""
_MLP = ["gate_proj", "up_proj", "down_proj"]
_FORMATS = {
    "instruct": "instruction",
    "alpaca": "instruction",
    "chat": "messages",
    "text_completion": "text",
    "preference": "preference",
}
_AWAY = {
    "profiler": "none here",
    "metric_logger": "`tracking` names trackers",
    "log_every_n_steps": "every step is logged",
    "output_dir": "`peft train --output` says it",
    "resume_from_checkpoint": "`peft resume RUN`",
    "log_peak_memory_stats": "report.html has the peak",
    "log_level": "--quiet says it",
    "shuffle": "rows are drawn anew in each epoch",
    "save_adapter_weights_only": "only the adapter is written; `peft merge` bakes it in",
    "enable_activation_offloading": "training.offload is not supported yet",
    "optimizer_in_bwd": "of no use where few weights are trained",
}


def is_one(given: Mapping[str, Any]) -> bool:
    """Components named by their path."""
    return any(isinstance(part, Mapping) and "_component_" in part for part in given.values())


def carry(draft: Draft) -> None:
    """Each component by the last part of its name."""
    _model(draft)
    _data(draft)
    shared_words.batch(draft, "batch_size", "gradient_accumulation_steps", 1)
    if shared_words.number(draft.look("max_steps_per_epoch")):
        draft.drop("max_steps_per_epoch", "training.max_steps counts the steps of the whole run")
    draft.same({"epochs": "training.epochs"}, float)
    draft.assume("training.epochs", 1.0, "the default there")
    _optimizer(draft)
    draft.same({"clip_grad_norm": "training.max_grad_norm"})
    draft.assume("training.max_grad_norm", None, "gradients are not clipped there unless it is said")
    if draft.has("dtype"):
        draft.put("dtype", "training.precision", str(draft.look("dtype")))
    draft.same({"enable_activation_checkpointing": "training.gradient_checkpointing", "compile": "training.compile"})
    if isinstance(draft.look("seed"), int):
        draft.put("seed", "seed", draft.look("seed"))
    if draft.look("device") in ("cuda", "cpu", "mps"):
        draft.put("device", "device", draft.look("device"))
    draft.drop("loss", "the loss is the task's")
    draft.without(_AWAY)


def _name(draft: Draft, section: str) -> str:
    return str(draft.look(f"{section}._component_") or "").rsplit(".", 1)[-1]


def _model(draft: Draft) -> None:
    builder = _name(draft, "model")
    folder = draft.look("checkpointer.checkpoint_dir")
    if folder:
        draft.put("checkpointer.checkpoint_dir", "model.base", folder, "a folder as the Hub has it, with config.json")
    draft.drop("checkpointer", "the base's own files say it")
    if builder.startswith(("lora_", "qlora_", "dora_", "qdora_")):
        _lora(draft, builder)
    else:
        draft.put("model._component_", "method.type", "full", "the builder has no adapter")
    draft.drop("model", "the base's own configuration says it")


def _lora(draft: Draft, builder: str) -> None:
    draft.put("model._component_", "method.type", "lora", builder)
    if builder.startswith("q"):
        draft.recipe["model.quantization"] = "nf4"
    if draft.look("model.quantize_base") is True:
        draft.put("model.quantize_base", "model.quantization", "nf4")
    chosen = [_PARTS.get(part, part) for part in draft.look("model.lora_attn_modules") or []]
    if draft.look("model.apply_lora_to_mlp") is True:
        chosen += _MLP
    if draft.look("model.apply_lora_to_output") is True:
        chosen.append("lm_head")
    if chosen:
        draft.put("model.lora_attn_modules", "method.target_modules", chosen)
        draft.drop("model.apply_lora_to_mlp", "among the target modules") if draft.look(
            "model.apply_lora_to_mlp"
        ) else None
        draft.drop("model.apply_lora_to_output", "among the target modules") if draft.look(
            "model.apply_lora_to_output"
        ) else None
    draft.idle({"model.apply_lora_to_mlp": (False,), "model.apply_lora_to_output": (False,)})
    for theirs, ours, usual in (
        ("lora_rank", "r", 8),
        ("lora_alpha", "lora_alpha", 16),
        ("lora_dropout", "lora_dropout", 0.0),
    ):
        draft.same({f"model.{theirs}": f"method.{ours}"}, shared_words.number)
        draft.assume(f"method.{ours}", usual, "the default there")
    if draft.look("model.use_dora") is True or builder.startswith(("dora_", "qdora_")):
        draft.recipe["method.use_dora"] = True


def _data(draft: Draft) -> None:
    kind = _name(draft, "dataset")
    form = next((ours for word, ours in _FORMATS.items() if kind.startswith(word)), None)
    if form:
        draft.recipe["data.format"] = form
    source = draft.look("dataset.source")
    files = draft.look("dataset.data_files")
    if files:
        draft.put("dataset.data_files", "data.train", files)
        draft.drop("dataset.source", "the kind of the files, which their names say")
    elif source:
        draft.put("dataset.source", "data.train", source)
    elif re.search("alpaca", kind):
        draft.put(
            "dataset._component_", "data.train", "yahma/alpaca-cleaned" if "cleaned" in kind else "tatsu-lab/alpaca"
        )
    draft.same({"tokenizer.max_seq_len": "data.max_length", "dataset.packed": "data.packing"})
    if "data.max_length" not in draft.recipe:
        draft.to_do.append("data.max_length: rows are never cut there; here at 1,024 tokens unless you name a length")
    draft.drop("tokenizer", "the base's own files say it")
    if draft.look("dataset.train_on_input") is True or (
        kind.startswith("alpaca") and draft.look("dataset.train_on_input") is not False
    ):
        draft.recipe["data.train_on"] = "all"
    draft.take("dataset.train_on_input")
    draft.drop("dataset", "format and columns: `data.format`, `data.columns`")


def _optimizer(draft: Draft) -> None:
    name = _name(draft, "optimizer").lower()
    draft.same(
        {"optimizer.lr": "training.learning_rate", "optimizer.weight_decay": "training.weight_decay"},
        shared_words.number,
    )
    draft.assume("training.weight_decay", 0.01, "the default of torch's AdamW")
    if name:
        ours = {"adamw": "adamw", "adamw8bit": "adamw_8bit", "pagedadamw8bit": "paged_adamw_8bit", "sgd": "sgd"}.get(
            name
        )
        if ours:
            draft.put("optimizer._component_", "training.optimizer", ours)
        else:
            draft.drop("optimizer._component_", "no optimizer here has that name; adamw is taken")
    draft.drop("optimizer.fused", "fused where it can be")
    schedule = _name(draft, "lr_scheduler")
    if "cosine" in schedule:
        draft.put("lr_scheduler._component_", "training.scheduler", "cosine")
        draft.same({"lr_scheduler.num_warmup_steps": "training.warmup_steps"})
    elif not schedule:
        draft.assume("training.scheduler", "constant", "no schedule there unless one is named")
    draft.assume("training.warmup_steps", 0, "none there unless it is said")
    draft.drop("lr_scheduler", "no schedule here has that name")
