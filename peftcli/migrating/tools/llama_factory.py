"""LLaMA-Factory's YAML or JSON. Defaults written out are those of LLaMA-Factory 0.9."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.migrating.draft import Draft
from peftcli.migrating.tools import hugging_face, shared_words

NAME = "LLaMA-Factory"
_TASKS = {"sft": "causal-lm", "pt": "causal-lm", "dpo": "preference", "kto": "preference", "rm": "reward"}
_LOSSES = {"sigmoid": "dpo", "kto_pair": "kto"}
_METHODS = {"lora": "lora", "full": "full", "freeze": "freeze", "oft": "oft"}
_AWAY = {
    "template": "the tokenizer's own chat template is used; another one goes into model.chat_template as a file",
    "dataset_dir": "paths are relative to the recipe",
    "preprocessing_num_workers": "rows are tokens on disk: there is nothing to load",
    "trust_remote_code": "no code of a base is run",
    "overwrite_cache": "the token cache knows what it was made of",
    "max_samples": "`rows` of a source (data.train as a list of sections) takes the first",
    "plot_loss": "report.html has the curves",
    "deepspeed": "`training.processes` and `training.sharding`",
    "stage": "the recipe's `task` says it",
    "use_unsloth": "`training.kernels` takes what is here by itself",
    "enable_liger_kernel": "`training.kernels` takes what is here by itself",
}


def is_one(given: Mapping[str, Any]) -> bool:
    """`finetuning_type` or `stage`, and its word for length or template."""
    return "finetuning_type" in given or ("stage" in given and ("cutoff_len" in given or "template" in given))


def carry(draft: Draft) -> None:
    """Its own arguments, then those of TrainingArguments."""
    draft.same(
        {
            "model_name_or_path": "model.base",
            "model_revision": "model.revision",
            "adapter_name_or_path": "model.init_adapter",
        }
    )
    stage = draft.look("stage") or "sft"
    if stage in _TASKS:
        draft.put("stage", "task", _TASKS[stage]) if draft.has("stage") else None
    else:
        draft.drop("stage", f"no task here is like `{stage}`; causal-lm is taken")
    _data(draft, stage)
    _method(draft)
    if stage in ("dpo", "kto"):
        _preference(draft, stage)
    hugging_face.training(draft, learning_rate=5e-5, recomputed=True)
    draft.drop("disable_gradient_checkpointing", "training.gradient_checkpointing says it")
    shared_words.attention(draft, ("flash_attn",))
    draft.without(_AWAY)


def _data(draft: Draft, stage: str) -> None:
    for theirs, ours in (("dataset", "data.train"), ("eval_dataset", "data.validation")):
        names = draft.look(theirs)
        if names:
            listed = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
            draft.put(theirs, ours, listed[0] if len(listed) == 1 else listed)
            draft.to_do.append(f"{ours}: names of its dataset_info.json; put the paths of the files in their place")
    size = shared_words.number(draft.look("val_size"))
    if size:
        draft.put("val_size", "data.validation", int(size) if size >= 1 else size)
    draft.idle({"val_size": (0, 0.0)}, "no validation rows, as here")
    draft.same({"cutoff_len": "data.max_length"}, shared_words.number)
    draft.assume("data.max_length", 2048, "the default there")
    if draft.look("neat_packing") is True or draft.look("packing") is True:
        draft.put("packing", "data.packing", True, "rows of a pack never see each other here")
        draft.drop("neat_packing", "rows of a pack never see each other here")
    draft.idle({"packing": (False,), "neat_packing": (False,)})
    if draft.look("train_on_prompt") is True:
        draft.put("train_on_prompt", "data.train_on", "all")
    elif draft.look("mask_history") is True:
        draft.put("mask_history", "data.train_on", "last-turn")
    draft.idle({"train_on_prompt": (False,), "mask_history": (False,)})
    if stage == "pt":
        draft.recipe.setdefault("data.format", "text")


def _method(draft: Draft) -> None:
    name = draft.look("finetuning_type") or "lora"
    draft.put("finetuning_type", "method.type", _METHODS.get(name, name))
    bits = shared_words.number(draft.look("quantization_bit"))
    if bits in (4, 8):
        draft.put("quantization_bit", "model.quantization", "nf4" if bits == 4 else "int8")
    draft.drop("quantization_method", "model.quantization is bitsandbytes'")
    if name != "lora":
        return
    shared_words.lora(draft, rank=8, alpha=None, dropout=0.0, why="the default there")
    draft.same({"lora_target": "method.target_modules"}, shared_words.targets)
    draft.same(
        {
            "use_dora": "method.use_dora",
            "use_rslora": "method.use_rslora",
            "loraplus_lr_ratio": "method.loraplus_lr_ratio",
        }
    )
    draft.same(
        {"additional_target": "method.modules_to_save"}, lambda value: [part.strip() for part in str(value).split(",")]
    )
    if draft.look("pissa_init") is True:
        draft.put("pissa_init", "method.init_lora_weights", "pissa")
    draft.drop("pissa_iter", "the decomposition is exact here")


def _preference(draft: Draft, stage: str) -> None:
    loss = draft.look("pref_loss") or ("sigmoid" if stage == "dpo" else "kto")
    draft.recipe["preference.loss"] = _LOSSES.get(loss, loss)
    if draft.has("pref_loss"):
        draft.put("pref_loss", "preference.loss", _LOSSES.get(loss, loss))
    draft.same(
        {"pref_beta": "preference.beta", "simpo_gamma": "preference.simpo_gamma", "pref_ftx": "preference.sft_weight"}
    )
