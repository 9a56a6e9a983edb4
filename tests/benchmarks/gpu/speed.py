"""A Llama of a real one's shape: how fast LoRA trains it through a recipe, and through peft and transformers' Trainer."""

from __future__ import annotations

import gc
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from llama import LLAMA_TINY, ROW_TOKENS, Shape, matrix_peak, wait_for, write_llama
from setting import HostMemory, Setting, events, gib, memory_facts, require, train

from peftcli.models.device import before_start, is_out_of_memory
from peftcli.planning.plan import prepare_run
from peftcli.recipe import load_recipe

RANK = 16
BATCH_ROWS = 8
WARM_STEPS = 2
HOST_SHARE = 0.5
"""Of the weights' bytes that may lie in the host's own memory at a time while they are loaded, on a GPU."""


def measure(setting: Setting, shape: Shape, *, steps: int, bounded_on_host: bool) -> str:
    """Writes the base, trains on rows of 2048, then lets peft and Trainer train on the same rows."""
    before_start(setting.device)
    shape, row_tokens = (LLAMA_TINY, 64) if setting.tiny else (shape, ROW_TOKENS)
    steps = 3 if setting.tiny else steps
    base = setting.folder / "base"
    weight_bytes = write_llama(base, shape, setting.device)
    _free()
    peak = matrix_peak(setting.device, torch.bfloat16, 256 if setting.tiny else 8192, 2 if setting.tiny else 20)
    setting.note(weight_bytes=weight_bytes, matrix_peak=peak, row_tokens=row_tokens)
    recipe = _recipe(setting, base, row_tokens, steps)
    with HostMemory() as host:
        record = train(recipe, setting.folder / "run")
    ours = _ours(setting, record, shape, row_tokens, peak)
    setting.note(host_bytes_grown=host.grown_bytes, peftcli=ours)
    _free()
    theirs = _trainer_arm(setting, base, recipe, steps)
    setting.note(peft_trainer=theirs)
    shutil.rmtree(base)
    require(record["status"] == "completed", f"the run is {record['status']}")
    if bounded_on_host and setting.on_gpu:
        share = host.grown_bytes / weight_bytes
        require(
            share < HOST_SHARE, f"loading took {gib(host.grown_bytes)} of the host for {gib(weight_bytes)} of weights"
        )
    return _line(ours, theirs)


def _line(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    told = (
        f"{ours['tokens_per_second']:.0f} tokens/s, {100 * ours['share_of_peak']:.0f} % of the matrix peak, first step "
    )
    told += f"after {ours['first_step_seconds']:.1f} s, {gib(ours['peak_memory_bytes'])} "
    told += f"(planned {gib(ours['planned_peak_bytes'])}); peft + Trainer: "
    if "tokens_per_second" not in theirs:
        return told + str(theirs["arm"])
    return told + f"{theirs['tokens_per_second']:.0f} tokens/s, {gib(theirs['peak_memory_bytes'])}"


def _recipe(setting: Setting, base: Path, row_tokens: int, steps: int) -> Path:
    return setting.recipe(
        "speed",
        model={"base": str(base)},
        data={"train": {"path": "builtin:text"}, "validation": None, "max_length": row_tokens},
        method={"type": "lora", "r": RANK, "lora_alpha": 32, "target_modules": "all-linear"},
        training={"precision": "bf16", "batch_size": BATCH_ROWS, "micro_batch_size": "auto", "max_steps": steps,
                  "learning_rate": 1e-4},
        evaluation=None,
        checkpoint={"every": None, "best": None},
    )  # fmt: skip


def _ours(setting: Setting, record: dict[str, Any], shape: Shape, row_tokens: int, peak: float) -> dict[str, Any]:
    first = events(setting.folder / "run", "train")[0]["seconds"]
    rate = record["tokens_per_second"]
    return {
        **memory_facts(record),
        "tokens_per_second": rate,
        "share_of_peak": rate * shape.step_flops_per_token(row_tokens, RANK) / peak,
        "first_step_seconds": record["seconds"]["startup"] + first,
        "micro_batch_size": record["settings"]["micro_batch_size"],
        "warnings": record["warnings"],
        "losses": [record_line["loss"] for record_line in events(setting.folder / "run", "train")],
    }


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# -- the other arm ---------------------------------------------------------------------------------------------------


def _trainer_arm(setting: Setting, base: Path, recipe: Path, steps: int) -> dict[str, Any]:
    """The same rows in the same order, micro-batches of the same size, through peft and Trainer."""
    try:
        import peft
    except ImportError:
        return {"arm": "not installed"}
    rows = _rows(recipe, steps)
    micro = setting.figures["peftcli"]["micro_batch_size"]
    while micro:
        try:
            found = _train(setting, base, rows, micro, steps)
            return {"arm": f"peft {peft.__version__}", "micro_batch_size": micro, **found}
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        _free()
        micro //= 2
    return {"arm": "out of memory with one row at a time"}


def _rows(recipe: Path, steps: int) -> list[dict[str, torch.Tensor]]:
    prepared = prepare_run(load_recipe(recipe, ()))
    order = prepared.order
    numbers = [
        int(number)
        for step in range(steps)
        for number in order.batch(*divmod(step, order.steps_per_epoch))  # type: ignore[union-attr]
    ]
    found = []
    for number in numbers:
        ids = torch.tensor(prepared.data.train[number].input_ids.tolist())
        weights = torch.tensor(prepared.data.train[number].weights.tolist())
        found.append({"input_ids": ids, "labels": torch.where(weights > 0, ids, -100)})
    return found


def _train(setting: Setting, base: Path, rows: list[dict[str, torch.Tensor]], micro: int, steps: int) -> dict[str, Any]:
    import peft
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            wait_for(setting.device)
            ends.append(time.perf_counter())

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(rows)  # type: ignore[arg-type]

    def collate(chosen: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        padded = {
            name: torch.nn.utils.rnn.pad_sequence([row[name] for row in chosen], batch_first=True, padding_value=value)
            for name, value in (("input_ids", 0), ("labels", -100))
        }
        return {**padded, "attention_mask": (padded["labels"] != -100).long()}

    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    placed = {"device_map": {"": "cuda"}} if setting.on_gpu else {}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, **placed)
    config = peft.LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    arguments = TrainingArguments(
        output_dir=str(setting.folder / "trainer"), per_device_train_batch_size=micro,
        gradient_accumulation_steps=BATCH_ROWS // micro, max_steps=steps, learning_rate=1e-4, bf16=True,
        optim="adamw_torch_fused", report_to=[], logging_strategy="no", save_strategy="no", disable_tqdm=True,
        use_cpu=not setting.on_gpu, remove_unused_columns=False,
    )  # fmt: skip
    trainer = InOrder(
        model=peft.get_peft_model(model, config), args=arguments, train_dataset=rows, data_collator=collate,
        callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    tokens = sum(len(row["input_ids"]) for row in rows[WARM_STEPS * BATCH_ROWS :])
    return {
        "tokens_per_second": tokens / (ends[-1] - ends[WARM_STEPS - 1]),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if setting.on_gpu else 0,
    }
