"""TrainingArguments of transformers as JSON or YAML, TRL's command line files, and `adapter_config.json`.

Defaults written out are those of transformers 5.24, TRL 1.16 and PEFT 0.21.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.migrating.draft import Draft
from peftcli.migrating.tools import shared_words

NAME = "Hugging Face TrainingArguments or TRL"
_OWN = ("per_device_train_batch_size", "num_train_epochs", "lr_scheduler_type", "output_dir", "learning_rate")
_TRL = ("dataset_name", "use_peft", "max_length", "max_seq_length", "assistant_only_loss", "completion_only_loss")
WHERE = {
    "output_dir": "`peft train --output` says it",
    "run_name": "the recipe's `name`, by default its file's",
    "logging_steps": "every step is logged in metrics.jsonl",
    "logging_strategy": "every step is logged in metrics.jsonl",
    "logging_dir": "metrics.jsonl and report.html are in the run folder",
    "logging_first_step": "every step is logged in metrics.jsonl",
    "overwrite_output_dir": "`peft train --replace` says it",
    "remove_unused_columns": "`data.columns` names what is used",
    "group_by_length": "batches are always sorted by length",
    "dataloader_num_workers": "rows are tokens on disk: there is nothing to load",
    "dataloader_pin_memory": "pinned where there is a GPU",
    "ddp_find_unused_parameters": "gradients are added once a step, of whatever is trained",
    "push_to_hub": "`peft push` says it",
    "hub_model_id": "`peft push` says it",
    "do_train": "`peft train` trains",
    "do_eval": "`data.validation` says it",
    "gradient_checkpointing_kwargs": "layers are recomputed without re-entering, as is recommended",
    "disable_tqdm": "--quiet says it",
}


def is_one(given: Mapping[str, Any]) -> bool:
    """TrainingArguments by their spelling of the batch, or TRL's by its own keys beside the model's."""
    return any(key in given for key in _OWN[:3]) or (
        "model_name_or_path" in given and any(key in given for key in _TRL)
    )


def carry(draft: Draft) -> None:
    """TRL's file where it names a dataset, TrainingArguments alone where not."""
    trl = draft.has("dataset_name") or draft.has("use_peft")
    draft.same({"model_name_or_path": "model.base", "model_revision": "model.revision"})
    _model(draft)
    draft.same({"dataset_name": "data.train", "train_file": "data.train", "validation_file": "data.validation"})
    if trl:
        _trl(draft)
    training(draft, learning_rate=2e-5 if trl else 5e-5, recomputed=trl)


def _model(draft: Draft) -> None:
    shared_words.quantized(draft)
    for theirs in ("dtype", "torch_dtype"):
        if draft.has(theirs):
            kind = str(draft.look(theirs)).removeprefix("torch.")
            draft.put(theirs, "model.dtype", {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(kind, kind))
    shared_words.attention(draft, ("attn_implementation",))


def _trl(draft: Draft) -> None:
    if draft.has("dataset_config"):
        draft.drop("dataset_config", "a source here is a dataset's default configuration: name files of the other")
    draft.same({"max_length": "data.max_length", "max_seq_length": "data.max_length"})
    draft.assume("data.max_length", 1024, "TRL's default")
    draft.same({"packing": "data.packing"})
    for theirs in ("assistant_only_loss", "completion_only_loss"):
        if draft.look(theirs) is True:
            draft.put(theirs, "data.train_on", "completions")
        elif draft.look(theirs) is False:
            draft.put(theirs, "data.train_on", "all")
    if "data.train_on" not in draft.recipe:
        draft.to_do.append(
            "data.train_on: TRL trains on all of a conversation unless told; here answers alone, or set `all`"
        )
    if draft.look("use_peft") is False or not (draft.has("use_peft") or draft.has("lora_r")):
        draft.recipe["method.type"] = "full"
        draft.drop("use_peft", "all weights are trained: method full")
        return
    draft.put("use_peft", "method.type", "lora")
    why = "TRL's default"
    shared_words.lora(draft, rank=16, alpha=32, dropout=0.05, why=why)
    draft.same({"lora_target_modules": "method.target_modules"}, shared_words.targets)
    draft.same(
        {
            "use_dora": "method.use_dora",
            "use_rslora": "method.use_rslora",
            "lora_modules_to_save": "method.modules_to_save",
        }
    )
    if "method.target_modules" not in draft.recipe:
        draft.assume(
            "method.target_modules", ["q_proj", "v_proj"], "what PEFT takes of most families where none are named"
        )


def training(
    draft: Draft, *, learning_rate: float, recomputed: bool = False, rows: int = 8, accumulation: int = 1
) -> None:
    """The fields of TrainingArguments, which other tools take over under the same names."""
    why = "the default there"
    shared_words.batch(draft, "per_device_train_batch_size", "gradient_accumulation_steps", rows, accumulation)
    draft.same({"learning_rate": "training.learning_rate"}, shared_words.number)
    draft.assume("training.learning_rate", learning_rate, why)
    if isinstance(steps := shared_words.number(draft.look("max_steps")), int | float) and steps > 0:
        draft.put("max_steps", "training.max_steps", int(steps))
        draft.drop("num_train_epochs", "`max_steps` rules")
    else:
        draft.drop("max_steps", "the epochs rule")
        draft.same({"num_train_epochs": "training.epochs"}, lambda value: float(shared_words.number(value)))
        draft.assume("training.epochs", 3.0, why)
    shared_words.scheduler(draft, "lr_scheduler_type")
    draft.assume("training.scheduler", "linear", why)
    shared_words.warmup(draft)
    if "training.warmup_ratio" not in draft.recipe:
        draft.assume("training.warmup_steps", 0, why)
    shared_words.optimizer(draft, "optim", {"adam_beta1": "beta1", "adam_beta2": "beta2", "adam_epsilon": "eps"})
    names = {
        "weight_decay": "training.weight_decay",
        "max_grad_norm": "training.max_grad_norm",
        "seed": "seed",
        "neftune_noise_alpha": "training.neftune_noise_alpha",
    }
    draft.same(names, shared_words.number)
    shared_words.precision(draft, {"bf16": "bf16", "fp16": "fp16"})
    draft.same({"gradient_checkpointing": "training.gradient_checkpointing"})
    if recomputed:
        draft.assume("training.gradient_checkpointing", True, why)
    _evaluation(draft)
    draft.without(WHERE)


def _evaluation(draft: Draft) -> None:
    if draft.look("eval_strategy") in ("no", None) and draft.look("evaluation_strategy") in ("no", None):
        draft.drop("eval_steps", "no evaluation was asked for; here it needs data.validation alone")
    elif (every := shared_words.number(draft.look("eval_steps"))) and every >= 1:
        draft.put("eval_steps", "evaluation.every", int(every))
    for theirs in ("eval_strategy", "evaluation_strategy"):
        draft.drop(theirs, "evaluated every `evaluation.every` steps, before training, and at the end")
    draft.same({"per_device_eval_batch_size": "evaluation.batch_size"})
    if (every := shared_words.number(draft.look("save_steps"))) and every >= 1 and draft.look("save_strategy") != "no":
        draft.put("save_steps", "checkpoint.every", int(every))
    draft.drop("save_strategy", "a checkpoint every `checkpoint.every` steps and at the end")
    if shared_words.number(draft.look("save_total_limit")):
        draft.put("save_total_limit", "checkpoint.keep", int(draft.look("save_total_limit")))
    best = draft.look("metric_for_best_model")
    if draft.look("load_best_model_at_end") and best in (None, "loss", "eval_loss"):
        draft.put("load_best_model_at_end", "checkpoint.best", "eval_loss")
    if draft.has("eval_steps") or draft.has("eval_strategy") or "checkpoint.best" in draft.recipe:
        draft.assume("checkpoint.best", None, "the last adapter is kept there")
    draft.without(
        {
            "load_best_model_at_end": "`checkpoint.best` names a metric",
            "greater_is_better": "each metric knows its direction",
            "metric_for_best_model": "`checkpoint.best` names a metric",
        }
    )
    report = draft.look("report_to")
    trackers = [report] if isinstance(report, str) else report or []
    known = [name for name in trackers if name in ("wandb", "tensorboard", "mlflow", "trackio")]
    if known:
        draft.put("report_to", "tracking", known)
    else:
        draft.drop("report_to", "report.html has the curves; `tracking` names trackers")
