"""Names that users bring from other tools, and the key that each one is here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

FOREIGN: dict[str, str] = {
    # TrainingArguments and TRL
    "model_name_or_path": "model.base",
    "model_name": "model.base",
    "torch_dtype": "model.dtype",
    "attn_implementation": "model.attention",
    "per_device_train_batch_size": "training.micro_batch_size",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "gradient_accumulation_steps": "training.batch_size",
    "num_train_epochs": "training.epochs",
    "lr_scheduler_type": "training.scheduler",
    "optim": "training.optimizer",
    "adam_beta1": "training.optimizer.betas",
    "adam_beta2": "training.optimizer.betas",
    "adam_epsilon": "training.optimizer.eps",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "eval_steps": "evaluation.every",
    "eval_strategy": "evaluation.every",
    "evaluation_strategy": "evaluation.every",
    "save_steps": "checkpoint.every",
    "save_strategy": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "metric_for_best_model": "checkpoint.best",
    "load_best_model_at_end": "checkpoint.best",
    "report_to": "tracking",
    "output_dir": "output",
    "dataset_name": "data.train",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "completion_only_loss": "data.train_on",
    "assistant_only_loss": "data.train_on",
    "train_on_inputs": "data.train_on",
    "load_in_4bit": "model.quantization",
    "load_in_8bit": "model.quantization",
    "torch_compile": "training.compile",
    "early_stopping_patience": "training.early_stopping",
    # Axolotl
    "base_model": "model.base",
    "adapter": "method.type",
    "lora_r": "method.r",
    "lora_target_modules": "method.target_modules",
    "lora_target_linear": "method.target_modules",
    "lora_modules_to_save": "method.modules_to_save",
    "datasets": "data.train",
    "val_set_size": "data.validation",
    "sequence_len": "data.max_length",
    "sample_packing": "data.packing",
    "num_epochs": "training.epochs",
    "lr_scheduler": "training.scheduler",
    "eval_batch_size": "evaluation.batch_size",
    "evals_per_epoch": "evaluation.every",
    "saves_per_epoch": "checkpoint.every",
    "wandb_project": "tracking",
    # LLaMA-Factory, torchtune, mlx-lm
    "finetuning_type": "method.type",
    "lora_rank": "method.r",
    "lora_target": "method.target_modules",
    "dataset": "data.train",
    "cutoff_len": "data.max_length",
    "val_size": "data.validation",
    "template": "model.chat_template",
    "rank": "method.r",
    "alpha": "method.lora_alpha",
    "targets": "method.target_modules",
    "lr": "training.learning_rate",
    "iters": "training.max_steps",
    "steps": "training.max_steps",
    "grad_clip": "training.max_grad_norm",
    "warmup": "training.warmup_steps",
    "eval": "evaluation",
    "train": "data.train",
}
_SECRET = re.compile(r"(^|_)(token|secret|password|passwd|api_?key|access_key|credentials?)$", re.IGNORECASE)


def looks_secret(key: str) -> bool:
    """Whether a key asks for something that belongs in the environment."""
    return bool(_SECRET.search(key))


def suggestion(key: str, section: str, known: Iterable[str], everywhere: Iterable[str]) -> str:
    """What to do about an unknown key of a section (`` for the top level).

    `known`: the section's own keys; `everywhere`: all dotted keys of a recipe.
    """
    if looks_secret(key):
        return "a recipe holds no secrets: set it in the environment (HF_TOKEN, WANDB_API_KEY)"
    shown = f"{section}.{key}" if section else key
    own = {name: f"{section}.{name}" if section else name for name in known}
    close = difflib.get_close_matches(key, own, n=1, cutoff=0.8)
    if close:
        return f"did you mean `{own[close[0]]}`?"
    if key in FOREIGN and FOREIGN[key] != shown:
        return f"here it is `{FOREIGN[key]}`"
    elsewhere = [dotted for dotted in everywhere if dotted.rsplit(".", 1)[-1] == key and dotted != shown]
    if elsewhere:
        home = elsewhere[0].rsplit(".", 1)[0] if "." in elsewhere[0] else "the top level"
        return f"`{key}` belongs under `{home}`" if "." in elsewhere[0] else f"`{key}` belongs at the top level"
    near = difflib.get_close_matches(key, own, n=3, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(f'`{own[name]}`' for name in near)}?"
    far = difflib.get_close_matches(key, [dotted.rsplit(".", 1)[-1] for dotted in everywhere], n=1, cutoff=0.75)
    if far:
        dotted = next(item for item in everywhere if item.rsplit(".", 1)[-1] == far[0])
        return f"did you mean `{dotted}`?"
    return f"keys here: {', '.join(sorted(known))}" if len(own) < 30 else "`peft explain` lists the keys"
