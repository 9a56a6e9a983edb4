"""ms-swift's arguments as YAML or JSON (`args.json`). Defaults written out are those of ms-swift 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.migrating.draft import Draft
from peftcli.migrating.tools import hugging_face, shared_words

NAME = "ms-swift"


def is_one(given: Mapping[str, Any]) -> bool:
    """`train_type` or `tuner_type`, and a model under `model`."""
    return ("train_type" in given or "tuner_type" in given) and isinstance(given.get("model"), str)


def carry(draft: Draft) -> None:
    """Its own arguments, then those of TrainingArguments."""
    draft.same({"model": "model.base", "model_revision": "model.revision"})
    if draft.has("torch_dtype"):
        draft.put("torch_dtype", "model.dtype", str(draft.look("torch_dtype")).removeprefix("torch."))
    _data(draft)
    _method(draft)
    for ours, value in (
        ("training.scheduler", "cosine"),
        ("training.weight_decay", 0.1),
        ("training.warmup_ratio", 0.05),
    ):
        theirs = {"training.scheduler": "lr_scheduler_type"}.get(ours, ours.split(".")[1])
        if not draft.has(theirs) and not (theirs == "warmup_ratio" and draft.has("warmup_steps")):
            draft.assume(ours, value, "the default there")
    hugging_face.training(
        draft,
        learning_rate=1e-4 if draft.recipe["method.type"] == "lora" else 1e-5,
        recomputed=True,
        rows=1,
        accumulation=16,
    )
    shared_words.attention(draft, ("attn_impl",))
    draft.without(
        {"template": "the tokenizer's own chat template is used", "system": "a system turn belongs to the rows"}
    )


def _data(draft: Draft) -> None:
    for theirs, ours in (("dataset", "data.train"), ("val_dataset", "data.validation")):
        listed = draft.look(theirs)
        listed = [listed] if isinstance(listed, str) else listed
        if listed:
            names = [str(name).split("#")[0] for name in listed]
            remark = (
                "`#N` takes the first N rows: `rows` of a source here"
                if any("#" in str(name) for name in listed)
                else None
            )
            draft.put(theirs, ours, names[0] if len(names) == 1 else names, remark)
    share = shared_words.number(draft.look("split_dataset_ratio"))
    if share:
        draft.put("split_dataset_ratio", "data.validation", share)
    draft.idle({"split_dataset_ratio": (0, 0.0)}, "no validation rows, as here")
    draft.same({"max_length": "data.max_length", "packing": "data.packing"})


def _method(draft: Draft) -> None:
    """The kind of adapter, the packing of its base, and LoRA's own arguments."""
    kind = "train_type" if draft.has("train_type") else "tuner_type"
    draft.put(kind, "method.type", draft.look(kind))
    if shared_words.number(draft.look("quant_bits")) in (4, 8):
        draft.put(
            "quant_bits", "model.quantization", "nf4" if shared_words.number(draft.look("quant_bits")) == 4 else "int8"
        )
    draft.drop("quant_method", "model.quantization is bitsandbytes'")
    if draft.recipe["method.type"] == "lora":
        shared_words.lora(draft, rank=8, alpha=32, dropout=0.05, why="the default there")
        draft.same(
            {"target_modules": "method.target_modules", "modules_to_save": "method.modules_to_save"},
            shared_words.targets,
        )
        draft.same({"use_dora": "method.use_dora", "use_rslora": "method.use_rslora", "lora_bias": "method.bias"})
