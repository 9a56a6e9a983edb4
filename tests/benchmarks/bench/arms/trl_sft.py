"""TRL's SFTTrainer on a peft model; `best` in the job: packed, adapters in the base's number format, nothing recomputed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from meter import Meter, read_job, write_result

meter = Meter()
job = read_job()

import datasets  # noqa: E402
import torch  # noqa: E402
import trl  # noqa: E402
from peer_model import adapted_model, changed_tensors  # noqa: E402
from torch.utils.data import SequentialSampler  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

torch.set_num_threads(job["threads"])
datasets.disable_progress_bars()
meter.watch_steps()
batches = json.loads(Path(job["rows"]).read_text(encoding="utf-8"))["given"]
model = adapted_model(job, meter)
before = changed_tensors(model)
losses: list[float] = []
tokens: list[int] = []
packed = bool(job["best"]) and not job["keep_losses"]
mean_tokens = sum(len(row["input_ids"]) for batch in batches for row in batch) / len(batches)
# as many tokens a step as the other arms have, in packs of the longest row's length
rows_a_step = max(1, round(mean_tokens / job["max_length"])) if packed else job["batch_rows"]
rows = [row for batch in batches for row in batch]
assert packed or all(len(batch) == rows_a_step for batch in batches), "a smaller batch would shift the rest"
while packed and sum(len(row["input_ids"]) for row in rows) < 1.2 * job["steps"] * rows_a_step * job["max_length"]:
    rows = rows + rows


class Arm(SFTTrainer):  # type: ignore[misc]
    """In the order given, where it is not packed."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        given = SequentialSampler(self.train_dataset)
        return given if job["order"] == "given" and not packed else super()._get_train_sampler(*args, **kwargs)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        mask = inputs.get("attention_mask")
        tokens.append(int(inputs["input_ids"].numel() if mask is None else mask.sum()))
        loss = super().training_step(model, inputs, *args, **kwargs)
        if job["keep_losses"]:
            losses.append(float(loss))
        return loss


arguments = SFTConfig(
    output_dir=str(Path(job["folder"], "sft")), per_device_train_batch_size=rows_a_step, max_steps=job["steps"],
    learning_rate=job["learning_rate"], lr_scheduler_type="constant", use_cpu=True, report_to=[], save_strategy="no",
    disable_tqdm=True, seed=job["seed"], max_length=job["max_length"], packing=packed,
    logging_strategy="steps" if job["keep_losses"] else "no", logging_steps=1,
    **({"gradient_checkpointing": False} if job["best"] else {}),
    **({"bf16": False} if job["best"] or job["dtype"] == "float32" else {}),
)  # fmt: skip
trainer = Arm(
    model=model,
    args=arguments,
    train_dataset=datasets.Dataset.from_list(rows),
    processing_class=AutoTokenizer.from_pretrained(job["base"]),
)
trainer.train()
norms = [float(line["grad_norm"]) for line in trainer.state.log_history if "grad_norm" in line]
write_result(
    job,
    losses=losses,
    grad_norms=norms,
    changed=before != changed_tensors(model),
    version=f"trl {trl.__version__}",
    **meter.figures(tokens, job["warm_steps"]),
)
