"""Axolotl's YAML. Defaults written out are those of Axolotl 0.13."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.migrating.draft import Draft
from peftcli.migrating.tools import hugging_face, shared_words

NAME = "Axolotl"
_FORMATS = {
    "alpaca": "instruction",
    "chat_template": "messages",
    "completion": "text",
    "sharegpt": "sharegpt",
    "input_output": "segments",
    "pretrain": "text",
}
_AWAY = {
    "special_tokens": "the tokenizer's own are used; `model.add_tokens` adds others",
    "tokens": "`model.add_tokens` adds tokens",
    "plugins": "a recipe names no code",
    "deepspeed": "`training.processes` and `training.sharding`",
    "fsdp": "`training.processes` and `training.sharding`",
    "fsdp_config": "`training.processes` and `training.sharding`",
    "dataset_prepared_path": "tokens are cached by themselves",
    "pad_to_sequence_len": "rows are padded as little as can be",
    "tokenizer_type": "the tokenizer says it",
    "model_type": "the base's own configuration says it",
    "is_llama_derived_model": "the base's own configuration says it",
    "resume_from_checkpoint": "`peft resume RUN`",
    "auto_resume_from_checkpoints": "`peft resume RUN`",
    "liger_rope": "`training.kernels` takes what is here by itself",
    "liger_rms_norm": "`training.kernels` takes what is here by itself",
    "liger_glu_activation": "`training.kernels` takes what is here by itself",
    "liger_fused_linear_cross_entropy": "`training.kernels` takes what is here by itself",
    "cut_cross_entropy": "`training.kernels` takes what is here by itself",
    "lora_mlp_kernel": "`training.kernels` takes what is here by itself",
    "lora_qkv_kernel": "`training.kernels` takes what is here by itself",
    "lora_o_kernel": "`training.kernels` takes what is here by itself",
    "shuffle_merged_datasets": "rows are drawn in another order in each epoch",
    "wandb_project": "`tracking: [wandb]`",
    "debug": "`peft data RECIPE` shows the tokens",
    "strict": "the data doctor checks every row",
}


def is_one(given: Mapping[str, Any]) -> bool:
    """`base_model`, with its words for length or data."""
    return "base_model" in given and any(
        key in given for key in ("datasets", "sequence_len", "micro_batch_size", "adapter")
    )


def carry(draft: Draft) -> None:
    """Model, data, method, then what it hands to TrainingArguments."""
    draft.same(
        {"base_model": "model.base", "revision_of_model": "model.revision", "lora_model_dir": "model.init_adapter"}
    )
    _data(draft)
    _method(draft)
    _training(draft)
    draft.without({**_AWAY, **hugging_face.WHERE})


def _data(draft: Draft) -> None:
    sources = [_source(draft, one) for one in draft.look("datasets") or [] if isinstance(one, Mapping)]
    if sources:
        draft.put("datasets", "data.train", sources[0] if len(sources) == 1 else sources)
    tests = [_source(draft, one) for one in draft.look("test_datasets") or [] if isinstance(one, Mapping)]
    if tests:
        draft.put("test_datasets", "data.validation", tests[0] if len(tests) == 1 else tests)
    size = shared_words.number(draft.look("val_set_size"))
    if size and not tests:
        draft.put("val_set_size", "data.validation", int(size) if size >= 1 else size)
    draft.idle({"val_set_size": (0, 0.0)}, "no validation rows, as here")
    draft.same({"sequence_len": "data.max_length", "sample_packing": "data.packing", "seed": "seed"})
    draft.assume("data.max_length", 512, "Axolotl's default")
    draft.put("train_on_inputs", "data.train_on", "all") if draft.look("train_on_inputs") is True else None
    draft.idle({"train_on_inputs": (False,)}, "completions alone, as here")
    if draft.look("chat_template") not in (None, "tokenizer_default"):
        draft.drop(
            "chat_template", "the tokenizer's template is used; write that one to a file for model.chat_template"
        )
    draft.idle({"chat_template": ("tokenizer_default",)}, "the tokenizer's, as here")
    draft.without({"eval_sample_packing": "evaluation pads"})


def _source(draft: Draft, one: Mapping[str, Any]) -> Any:
    kind = str(one.get("type", "")).split(".")[0].split(":")[0] if isinstance(one.get("type"), str) else ""
    fields = {
        "path": one.get("data_files") or one.get("path"),
        "split": one.get("split"),
        "revision": one.get("revision"),
        "format": _FORMATS.get(kind),
    }
    if isinstance(fields["path"], list):
        fields["path"] = (
            fields["path"][0] if len(fields["path"]) == 1 else "{" + ",".join(map(str, fields["path"])) + "}"
        )
    if fields["split"] == "train":
        fields["split"] = None
    known = {key: value for key, value in fields.items() if value is not None}
    return known["path"] if list(known) == ["path"] else known


def _method(draft: Draft) -> None:
    name = draft.look("adapter")
    if name in (None, ""):
        draft.recipe["method.type"] = "full"
        draft.drop("adapter", "all weights are trained: method full")
        shared_words.quantized(draft)
        return
    draft.put("adapter", "method.type", "lora" if name == "qlora" else name)
    if name == "qlora":
        draft.recipe["model.quantization"] = "nf4"
    shared_words.quantized(draft)
    shared_words.lora(draft, rank=8, alpha=16, dropout=0.0, why="the default there")
    if draft.look("lora_target_linear") is True:
        draft.put("lora_target_linear", "method.target_modules", "all-linear")
        draft.drop("lora_target_modules", "all linear layers hold them")
    draft.idle({"lora_target_linear": (False,)})
    draft.same({"lora_target_modules": "method.target_modules"}, shared_words.targets)
    draft.same(
        {
            "peft_use_dora": "method.use_dora",
            "peft_use_rslora": "method.use_rslora",
            "lora_modules_to_save": "method.modules_to_save",
            "loraplus_lr_ratio": "method.loraplus_lr_ratio",
            "peft_layers_to_transform": "method.layers_to_transform",
        }
    )
    draft.idle({"lora_fan_in_fan_out": (False,), "peft_use_dora": (False,), "peft_use_rslora": (False,)})


def _training(draft: Draft) -> None:
    shared_words.batch(draft, "micro_batch_size", "gradient_accumulation_steps", 1)
    draft.same({"learning_rate": "training.learning_rate", "max_steps": "training.max_steps"}, shared_words.number)
    if "training.max_steps" in draft.recipe:
        draft.drop("num_epochs", "`max_steps` rules")
    draft.same({"num_epochs": "training.epochs"}, lambda value: float(shared_words.number(value)))
    if "training.max_steps" not in draft.recipe:
        draft.assume("training.epochs", 1.0, "the default there")
    shared_words.scheduler(draft, "lr_scheduler")
    shared_words.warmup(draft)
    shared_words.optimizer(draft, "optimizer", {"adam_beta1": "beta1", "adam_beta2": "beta2", "adam_epsilon": "eps"})
    draft.same(
        {
            "weight_decay": "training.weight_decay",
            "max_grad_norm": "training.max_grad_norm",
            "neftune_noise_alpha": "training.neftune_noise_alpha",
        },
        shared_words.number,
    )
    shared_words.precision(draft, {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16"})
    draft.drop("tf32", "torch's own setting of the matrix product is left as it is")
    value = draft.look("gradient_checkpointing")
    if value in (True, "true", "offload"):
        draft.put("gradient_checkpointing", "training.gradient_checkpointing", True)
    draft.idle({"gradient_checkpointing": (False,)})
    shared_words.attention(
        draft,
        (
            "flash_attention",
            "attn_implementation",
            "sdp_attention",
            "xformers_attention",
            "flash_attn_cross_entropy",
            "s2_attention",
            "eager_attention",
        ),
    )
    _evaluation(draft)


def _evaluation(draft: Draft) -> None:
    for theirs, ours in (("eval_steps", "evaluation.every"), ("save_steps", "checkpoint.every")):
        every = shared_words.number(draft.look(theirs))
        if every and every >= 1:
            draft.put(theirs, ours, int(every))
        else:
            draft.drop(theirs, f"a share of the run: `{ours}` counts steps")
    for theirs in ("evals_per_epoch", "saves_per_epoch"):
        ours = "evaluation.every" if theirs.startswith("eval") else "checkpoint.every"
        draft.drop(theirs, f"`{ours}` counts steps; `peft plan` says how many an epoch has")
    draft.same({"eval_batch_size": "evaluation.batch_size", "save_total_limit": "checkpoint.keep"})
    if patience := draft.look("early_stopping_patience"):
        draft.put("early_stopping_patience", "training.early_stopping", {"metric": "eval_loss", "patience": patience})
    if "data.validation" in draft.recipe:
        draft.assume("checkpoint.best", None, "the last adapter is kept there")
