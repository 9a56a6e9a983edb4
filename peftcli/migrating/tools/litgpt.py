"""LitGPT's YAML (`litgpt finetune_lora --config`). Defaults written out are those of LitGPT 0.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.migrating.draft import Draft
from peftcli.migrating.tools import shared_words

NAME = "LitGPT"
_LAYERS = {
    "lora_query": ("q_proj", True),
    "lora_key": ("k_proj", False),
    "lora_value": ("v_proj", True),
    "lora_projection": ("o_proj", False),
    "lora_head": ("lm_head", False),
}
"""Switch -> the layer of the checkpoint, and whether it is on where the file is silent."""
_MLP = ["gate_proj", "up_proj", "down_proj"]
_DATA = {
    "Alpaca": ("tatsu-lab/alpaca", "instruction"),
    "Alpaca2k": ("mhenrichsen/alpaca_2k_test", "instruction"),
    "Dolly": ("databricks/databricks-dolly-15k", "instruction"),
    "LIMA": ("GAIR/lima", None),
    "JSON": (None, "instruction"),
}


def is_one(given: Mapping[str, Any]) -> bool:
    """`checkpoint_dir` and a `train` section with its words."""
    return "checkpoint_dir" in given and isinstance(given.get("train"), Mapping)


def carry(draft: Draft) -> None:
    """Base, LoRA, data, training."""
    base = str(draft.look("checkpoint_dir")).removeprefix("checkpoints/")
    draft.put(
        "checkpoint_dir", "model.base", base, "the release as the Hub has it: LitGPT's own folders hold other names"
    )
    quantize = str(draft.look("quantize") or "")
    if quantize.startswith("bnb"):
        draft.put("quantize", "model.quantization", "int8" if "int8" in quantize else "nf4")
    if draft.has("precision"):
        word = str(draft.look("precision"))
        draft.put(
            "precision",
            "training.precision",
            {"bf16-true": "bf16", "bf16-mixed": "bf16", "16-true": "fp16", "16-mixed": "fp16"}.get(word, "fp32"),
        )
    shared_words.lora(draft, rank=8, alpha=16, dropout=0.05, why="the default there")
    chosen = []
    for theirs, (ours, usual) in _LAYERS.items():
        said = draft.look(theirs)
        if usual if said is None else said:
            chosen.append(ours)
        draft.drop(theirs, f"{ours} is {'among' if ours in chosen else 'not among'} the target modules")
    if draft.look("lora_mlp") is True:
        chosen += _MLP
    draft.drop("lora_mlp", "its layers are among the target modules" if draft.look("lora_mlp") else "off")
    draft.assume("method.target_modules", chosen, "the layers that its switches name")
    _data(draft)
    _training(draft)
    draft.without(
        {
            "out_dir": "`peft train --output` says it",
            "logger_name": "`tracking` names trackers",
            "devices": "training.processes",
            "num_nodes": "training.processes",
            "generate_prompt": "evaluation.samples",
            "optimizer": "no optimizer here has that name",
        }
    )


def _data(draft: Draft) -> None:
    said = draft.look("data")
    kind = str((draft.look("data.class_path") if isinstance(said, Mapping) else said) or "Alpaca").rsplit(".", 1)[-1]
    source, form = _DATA.get(kind, (None, None))
    if source and isinstance(said, str):
        draft.put("data", "data.train", source)
    elif source:
        draft.put("data.class_path", "data.train", source)
    if form:
        draft.recipe["data.format"] = form
    inner = "data.init_args"
    draft.same({f"{inner}.json_path": "data.train"})
    share = shared_words.number(draft.look(f"{inner}.val_split_fraction"))
    if share:
        draft.put(f"{inner}.val_split_fraction", "data.validation", share)
    if draft.look(f"{inner}.mask_prompt") is not True:
        draft.assume("data.train_on", "all", "LitGPT trains on prompts unless `mask_prompt` is true")
    draft.idle({f"{inner}.mask_prompt": (True, False)}, "in data.train_on")
    draft.drop("data", "the tokenizer's own chat template, or `data.format`, lays the prompt out")


def _training(draft: Draft) -> None:
    draft.same(
        {"train.global_batch_size": "training.batch_size", "train.micro_batch_size": "training.micro_batch_size"}
    )
    draft.assume("training.batch_size", 16, "the default there")
    draft.same({"train.max_steps": "training.max_steps"})
    if "training.max_steps" in draft.recipe:
        draft.drop("train.epochs", "`max_steps` rules")
    draft.same({"train.epochs": "training.epochs"}, float)
    if "training.max_steps" not in draft.recipe:
        draft.assume("training.epochs", 5.0, "the default there")
    draft.same(
        {
            "train.lr_warmup_steps": "training.warmup_steps",
            "train.max_seq_length": "data.max_length",
            "train.max_norm": "training.max_grad_norm",
            "seed": "seed",
            "eval.interval": "evaluation.every",
            "train.save_interval": "checkpoint.every",
        }
    )
    if "data.max_length" not in draft.recipe:
        draft.to_do.append("data.max_length: rows are never cut there; here at 1,024 tokens unless you name a length")
    lowest, peak = (
        shared_words.number(draft.look("train.min_lr")),
        shared_words.number(draft.look("optimizer.init_args.lr")),
    )
    if lowest and peak and lowest < peak:
        draft.put("train.min_lr", "training.scheduler", {"type": "cosine", "min_ratio": lowest / peak})
    draft.assume("training.warmup_steps", 100, "the default there")
    draft.assume("training.max_grad_norm", None, "gradients are not clipped there unless it is said")
    draft.assume("training.scheduler", "cosine", "the only schedule there")
    draft.same(
        {
            "optimizer.init_args.lr": "training.learning_rate",
            "optimizer.init_args.weight_decay": "training.weight_decay",
        },
        shared_words.number,
    )
    if betas := draft.look("optimizer.init_args.betas"):
        draft.put(
            "optimizer.init_args.betas", "training.optimizer", {"type": "adamw", "betas": [float(one) for one in betas]}
        )
    draft.drop("optimizer.class_path", "adamw")
