"""peft with transformers' Trainer; `best` in the job: adapters in the base's number format, rows grouped by length."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from meter import Meter, read_job, write_result

meter = Meter()
job = read_job()

import peft  # noqa: E402
import torch  # noqa: E402
from peer_model import adapted_model, changed_tensors, collate, items_in_order  # noqa: E402
from torch.utils.data import SequentialSampler  # noqa: E402
from transformers import Trainer, TrainingArguments  # noqa: E402

torch.set_num_threads(job["threads"])
meter.watch_steps()
items, batch_items = items_in_order(job)
model = adapted_model(job, meter)
before = changed_tensors(model)
losses: list[float] = []
tokens: list[int] = []


class Arm(Trainer):  # type: ignore[misc]
    """In the order given, or shuffled as Trainer does by itself."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return SequentialSampler(items) if job["order"] == "given" else super()._get_train_sampler(*args, **kwargs)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        tokens.append(int(inputs["attention_mask"].sum()))
        loss = super().training_step(model, inputs, *args, **kwargs)
        if job["keep_losses"]:
            losses.append(float(loss))
        return loss


arguments = TrainingArguments(
    output_dir=str(Path(job["folder"], "trainer")), per_device_train_batch_size=batch_items,
    max_steps=job["steps"], learning_rate=job["learning_rate"], lr_scheduler_type="constant", use_cpu=True,
    report_to=[], save_strategy="no", disable_tqdm=True, remove_unused_columns=False, dataloader_drop_last=True,
    seed=job["seed"], logging_strategy="steps" if job["keep_losses"] else "no", logging_steps=1,
)  # fmt: skip
trainer = Arm(model=model, args=arguments, train_dataset=items, data_collator=collate)
trainer.train()
norms = [float(line["grad_norm"]) for line in trainer.state.log_history if "grad_norm" in line]
write_result(
    job,
    losses=losses,
    grad_norms=norms,
    changed=before != changed_tensors(model),
    version=f"peft {peft.__version__}",
    **meter.figures(tokens, job["warm_steps"]),
)
