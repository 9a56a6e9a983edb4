"""Names that other tools (TrainingArguments, TRL, Axolotl, LLaMA-Factory, LitGPT, torchtune) use for our keys."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from peftcli.adapters.registry import config_class, method_names
from peftcli.data.format import load_format
from peftcli.data.names import format_names
from peftcli.tasks.registry import FOREIGN_TASK_NAMES

MODEL = (
    "model_name_or_path",
    "model_name",
    "base_model",
    "pretrained_model_name_or_path",
    "checkpoint_dir",
    "base_model_name",
)
_RENAMED: dict[str, tuple[str, ...]] = {
    "model.base": (*MODEL, "path"),
    "model.revision": ("model_revision", "revision_of_model"),
    "model.dtype": ("torch_dtype", "torch_dtype_str", "model_dtype"),
    "model.attention": ("attn_implementation", "flash_attention", "flash_attn", "sdp_attention", "xformers_attention"),
    "model.init_adapter": ("adapter_name_or_path", "lora_model_dir", "adapter_path"),
    "model.chat_template": ("template", "chat_template_path", "chat_template_jinja", "custom_chat_template"),
    "data.train": (
        "dataset", "datasets", "dataset_name", "dataset_path", "train_file", "train_dataset", "train_data", "json_path",
        "data_path", "dataset_dir",
    ),
    "data.validation": (
        "eval_dataset", "validation_file", "test_datasets", "val_size", "val_set_size", "val_split_fraction",
        "test_size", "eval_data", "eval_file", "validation_split",
    ),
    "data.max_length": (
        "sequence_len", "cutoff_len", "max_seq_length", "max_seq_len", "max_sequence_length", "model_max_length",
        "block_size", "seq_length",
    ),
    "data.format": ("dataset_type", "prompt_style", "chat_format"),
    "data.packing": ("sample_packing", "pack", "packed"),
    "data.train_on": (
        "train_on_inputs", "completion_only_loss", "assistant_only_loss", "mask_prompt", "train_on_prompt",
        "train_on_input", "mask_history",
    ),
    "data.columns": ("dataset_text_field", "field_instruction", "columns_map"),
    "method.type": ("adapter", "peft_type", "finetuning_type", "peft_method"),
    "training.epochs": ("num_train_epochs", "num_epochs", "max_epochs", "n_epochs", "epoch"),
    "training.max_steps": ("max_iters", "num_steps", "total_steps", "iters", "max_train_steps", "steps"),
    "training.batch_size": ("global_batch_size", "train_batch_size", "effective_batch_size"),
    "training.micro_batch_size": ("per_device_train_batch_size", "per_gpu_train_batch_size", "device_batch_size"),
    "training.learning_rate": ("lr", "peak_lr", "base_lr"),
    "training.optimizer": ("optim", "optimizer_type"),
    "training.scheduler": ("lr_scheduler_type", "lr_scheduler", "lr_schedule", "scheduler_type"),
    "training.warmup_steps": ("lr_warmup_steps", "num_warmup_steps", "warmup"),
    "training.max_grad_norm": ("gradient_clipping", "grad_clip", "clip_grad_norm", "max_norm", "gradient_clip_val"),
    "training.precision": ("bf16", "fp16", "mixed_precision", "fp32", "tf32", "amp"),
    "training.gradient_checkpointing": (
        "enable_activation_checkpointing", "activation_checkpointing", "grad_checkpoint",
    ),
    "training.compile": ("torch_compile",),
    "training.neftune_noise_alpha": ("neftune_alpha", "noisy_embedding_alpha"),
    "training.processes": ("num_processes", "num_gpus", "nproc_per_node", "world_size", "devices"),
    "training.early_stopping": ("early_stopping_patience",),
    "training.optimizer.betas": ("adam_beta1", "adam_beta2"),
    "training.optimizer.eps": ("adam_epsilon", "adam_eps"),
    "evaluation.every": (
        "eval_steps", "evals_per_epoch", "eval_strategy", "evaluation_strategy", "eval_every", "steps_per_eval",
    ),
    "evaluation.batch_size": ("per_device_eval_batch_size", "eval_batch_size"),
    "evaluation.metrics": ("compute_metrics", "eval_metrics"),
    "evaluation.rows": ("max_eval_samples", "eval_samples", "max_eval_batches"),
    "checkpoint.every": (
        "save_steps", "saves_per_epoch", "save_strategy", "save_every", "save_interval", "checkpoint_every",
    ),
    "checkpoint.keep": ("save_total_limit", "max_checkpoints"),
    "checkpoint.best": ("metric_for_best_model", "load_best_model_at_end", "greater_is_better"),
    "generation.system_prompt": ("default_system", "system"),
    "generation.max_new_tokens": ("max_tokens", "generation_max_length"),
    "model.quantization": (
        "load_in_4bit", "load_in_8bit", "quantize", "quantization_bit", "bnb_4bit_quant_type", "quantization_config",
    ),
    "tracking": ("report_to", "logger_name", "wandb_project", "use_wandb", "metric_logger", "enable_wandb"),
    "output": ("output_dir", "out_dir", "save_dir", "run_dir"),
    "seed": ("random_seed", "data_seed"),
    "name": ("run_name", "experiment_name", "wandb_name"),
    "threads": ("num_threads", "torch_num_threads", "dataset_num_proc", "preprocessing_num_workers"),
}  # fmt: skip


_SOURCE: Mapping[str, tuple[str, ...]] = {
    "path": ("file", "files", "name", "source", "dataset", "data_files", "url", "id", "repo"),
    "format": ("type", "kind"),
    "rows": ("limit", "max_rows", "num_rows", "samples", "size"),
    "weight": ("probability", "proportion", "ratio"),
}
_WITHIN: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "model": {"base": ("name", "id", "path", "model", "repo", "repo_id", "folder", "model_id")},
    "data": {
        "train": ("path", "file", "files", "name", "source", "data_files", "training"),
        "format": ("type", "kind"),
    },
    "data.train": _SOURCE,
    "data.validation": _SOURCE,
    "evaluation": {"every": ("steps", "interval", "frequency"), "rows": ("limit", "max_rows")},
    "checkpoint": {"every": ("steps", "interval", "frequency"), "keep": ("limit", "max", "total_limit", "last")},
    "generation": {"max_new_tokens": ("max_length", "length", "tokens"), "do_sample": ("sample", "sampling")},
}
"""Section -> our key in it -> general words for it, which in another section mean something else."""


@functools.cache
def words_within(section: str) -> Mapping[str, str]:
    """What one may call the keys of a section there alone -> the key. `section`: dotted, without list positions."""
    return {word: key for key, words in _WITHIN.get(section, {}).items() for word in words}


@functools.cache
def foreign_keys() -> Mapping[str, str]:
    """Another tool's key -> our dotted key; those of the methods' fields as the methods state them."""
    of_methods = {
        name: f"method.{field}"
        for method in method_names()
        for field, names in config_class(method).foreign_names.items()
        for name in names
    }
    return {name: key for key, names in _RENAMED.items() for name in names} | of_methods


_ROWS = "give the source a `rows`: data: {train: [{path: ..., rows: 1000}]}"
_WEIGHT = "give each source a `weight`: data: {train: [{path: ..., weight: 2}, ...]}"

ADVICE: Mapping[str, str] = {
    "max_samples": _ROWS,
    "max_train_samples": _ROWS,
    "num_samples": _ROWS,
    "mixture_proportion": _WEIGHT,
    "interleave_probs": _WEIGHT,
    "mix_probs": _WEIGHT,
    "gradient_accumulation_steps": "set `training.batch_size` (rows per step) and `training.micro_batch_size` "
    "(rows per forward); accumulation follows",
    "grad_accumulation_steps": "set `training.batch_size` (rows per step) and `training.micro_batch_size`; "
    "accumulation follows",
    "gradient_accumulation": "set `training.batch_size` (rows per step) and `training.micro_batch_size`; "
    "accumulation follows",
    "trust_remote_code": "a recipe can never allow remote code; `peft train --trust-remote-code` does",
    "auto_map": "a recipe never names code",
    "_target_": "a recipe never names code",
    "_component_": "a recipe never names code",
    "class_path": "a recipe never names code",
    "plugins": "a recipe never names code; methods, formats and metrics of installed packages are found by name",
    "stage": "leave it out: `task` and `data.format` say it (supervised fine-tuning is `task: causal-lm`)",
    "do_train": "leave it out: `peft train` trains",
    "do_eval": "leave it out: set `data.validation`",
    "per_device_batch_size": "set `training.batch_size` (rows per step) or `training.micro_batch_size` (per forward)",
    "group_by_length": "leave it out: batches are always grouped by length",
    "overwrite_output_dir": "leave it out: `peft train --replace`",
    "resume_from_checkpoint": "leave it out: `peft resume RUN`",
    "use_peft": "leave it out: `method` says it",
    "logging_steps": "leave it out: every step is logged in metrics.jsonl",
    "plot_loss": "leave it out: report.html has the curves",
    "push_to_hub": "leave it out: nothing is uploaded",
    "hub_model_id": "leave it out: nothing is uploaded",
    "deepspeed": "not supported yet; leave it out",
    "fsdp": "not supported yet; leave it out",
    "special_tokens": "not supported yet; the tokenizer's own are used",
    "task_type": "leave it out: `task` says it",
    "inference_mode": "leave it out: it belongs to adapter_config.json",
    "padding_side": "leave it out: training pads on the right, generation on the left",
    "remove_unused_columns": "leave it out: `data.columns` names what is used",
}
"""A key of another tool that no single key here stands for -> what to do instead."""

_VALUES: Mapping[str, Mapping[str, str]] = {
    "training.optimizer": {
        "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw", "adam": "adamw",
        "torch.optim.adamw": "adamw", "adamw_bnb_8bit": "adamw_8bit", "paged_adamw_32bit": "paged_adamw",
        "schedule_free_adamw": "schedule_free", "lion_pytorch": "lion", "adam8bit": "adamw_8bit",
    },
    "training.scheduler": {
        "constant_with_warmup": "constant", "cosine_with_min_lr": "cosine", "warmup_stable_decay": "wsd",
        "cosine_annealing": "cosine", "none": "constant", "constant_with_warm_up": "constant",
    },
    "training.precision": {
        "bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "bf16-true": "bf16", "bf16-mixed": "bf16",
        "16": "fp16", "32": "fp32", "no": "fp32", "half": "fp16",
    },
    "model.dtype": {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16"},
    "model.quantization": {
        "4bit": "nf4", "4-bit": "nf4", "bnb": "nf4", "fp4": "nf4", "qlora": "nf4", "8bit": "int8", "8-bit": "int8",
    },
    "device": {"gpu": "cuda", "cuda:0": "cuda", "metal": "mps"},
    "data.train_on": {"completion": "completions", "assistant": "completions", "inputs": "all", "last": "last-turn"},
    "method.target_modules": {"all": "all-linear"},
}  # fmt: skip


@functools.cache
def foreign_values() -> Mapping[str, Mapping[str, str]]:
    """Another tool's word for a value -> ours, by key; formats and tasks as they state them."""
    formats = {name: ours for ours in format_names() for name in load_format(ours).foreign_names}
    return {**_VALUES, "data.format": formats, "task": FOREIGN_TASK_NAMES}
