"""Training traces of the reference library, through the task: its rows, its batches, its loss."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from peftcli import adapters
from peftcli.adapters.surgery import adapter_of
from peftcli.data.parts import part
from peftcli.models.heads import SINGLE, LabelHead
from peftcli.models.load import load_model
from peftcli.models.source import resolve_base
from peftcli.tasks.base import Task
from peftcli.tasks.registry import task

GROUND = os.environ.get("PEFTCLI_GROUND")
pytestmark = pytest.mark.skipif(GROUND is None, reason="PEFTCLI_GROUND names no measuring ground")
TOLERANCE = 1e-5
BERT = ("bert_lora", "bert_dora_all", "bert_ia3", "bert_prefix", "bert_prompt")


@dataclass
class Row:
    input_ids: np.ndarray
    weights: np.ndarray
    parts: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    labels: tuple[Any, ...] = ()


def golden(name: str) -> Path:
    return Path(GROUND or "", "golden", name)


def labelled_rows(batches: dict[str, Tensor], name: str) -> list[Row]:
    ids, mask, labels = (batches[f"{name}.{key}"] for key in ("input_ids", "attention_mask", "labels"))
    return [
        Row(row[real.bool()].numpy(), np.zeros(int(real.sum()), dtype=np.float32), labels=(int(label),))
        for row, real, label in zip(ids, mask, labels, strict=True)
    ]


def losses(case: str, trace: dict[str, Any], found: Task, model: Any, rows: Any) -> list[float]:
    """The loss before each step, trained as the trace was, each batch cut into two micro-batches."""
    model.train()
    optimizer = torch.optim.AdamW(adapter_of(model).trainable_parameters().values(), **trace["optimizer_args"])
    seen = []
    for step in range(trace["steps"]):
        batch = rows(f"train{step % 5}")
        parts = [found.collate(batch[:1], pad_token_id=0), found.collate(batch[1:], pad_token_id=0)]
        total = sum(found.weigh(cut) for cut in parts)
        optimizer.zero_grad()
        sums = []
        for cut in parts:
            loss = found.loss(model, cut)
            (loss.total / total).backward()
            sums.append(float(loss.total.detach()))
        optimizer.step()
        seen.append(sum(sums) / total)
    return seen


@pytest.mark.parametrize("case", BERT)
def test_classification_trains_as_the_reference_does(case: str) -> None:
    trace = json.loads(golden(case).joinpath("trace.json").read_text())
    batches = load_file(golden("base_bert") / "batches.safetensors")
    head = LabelHead.unnamed(4, SINGLE)
    model = load_model(
        resolve_base(str(golden("base_bert")), folder=Path()),
        auto_class="AutoModelForSequenceClassification", attention="eager", head=head,
    )  # fmt: skip
    adapters.load(model, golden(case) / "init", trainable=True)
    found = task("sequence-classification").with_head(head)
    seen = losses(case, trace, found, model, lambda name: labelled_rows(batches, name))
    assert max(abs(a - b) for a, b in zip(seen, trace["losses"], strict=True)) < TOLERANCE


def pair_rows(batches: dict[str, Tensor], name: str) -> list[Row]:
    ids, mask, labels = (batches[f"{name}.{key}"] for key in ("input_ids", "attention_mask", "labels"))
    found = []
    for row, real, target in zip(ids, mask, labels, strict=True):
        source, target = row[real.bool()].numpy(), target[target != -100].numpy()
        parts = np.array([part(text=0)] * len(source) + [part(text=1)] * len(target))
        weights = np.array([0.0] * len(source) + [1.0] * len(target), dtype=np.float32)
        found.append(Row(np.concatenate([source, target]), weights, parts))
    return found


@pytest.mark.parametrize("case", ["t5_lora", "t5_prompt"])
def test_seq2seq_trains_as_the_reference_does(case: str) -> None:
    trace = json.loads(golden(case).joinpath("trace.json").read_text())
    batches = load_file(golden("base_t5") / "batches.safetensors")
    found = task("seq2seq-lm")
    model = load_model(resolve_base(str(golden("base_t5")), folder=Path()), auto_class=found.auto_class)
    adapters.load(model, golden(case) / "init", trainable=True)
    seen = losses(case, trace, found, model, lambda name: pair_rows(batches, name))
    assert max(abs(a - b) for a, b in zip(seen, trace["losses"], strict=True)) < TOLERANCE
