"""What the peers' arms share: the base with the starting adapter, rows, padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def adapted_model(job: dict[str, Any], meter: Any) -> Any:
    """The base in the job's number format under peft, with the tensors that peftcli starts from."""
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=getattr(torch, job["dtype"]))
    meter.loaded()
    start = Path(job["start"])
    fields = json.loads((start / "adapter_config.json").read_text(encoding="utf-8"))
    config = peft.PeftConfig.from_peft_type(**{**fields, "inference_mode": False})
    found = peft.get_peft_model(model, config, autocast_adapter_dtype=not job["best"])
    tensors = load_file(start / "adapter_model.safetensors")
    peft.set_peft_model_state_dict(found, tensors)
    _require_taken(found, tensors)
    return found


def _require_taken(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """A key that peft does not know is left out silently, and a comparison from another start says nothing."""
    back = peft.get_peft_model_state_dict(model)
    wrong = [name for name in back.keys() | tensors if name not in back or name not in tensors]
    wrong = wrong or [
        name for name, tensor in tensors.items() if not torch.equal(back[name], tensor.to(back[name].dtype))
    ]
    assert not wrong, f"not taken over by peft: {wrong[:3]}"


def changed_tensors(model: Any) -> list[float]:
    """A number for each trained tensor; another one once it has changed."""
    return [float(p.detach().double().abs().sum()) for p in model.parameters() if p.requires_grad]


Row = dict[str, list[int]]


def items_in_order(job: dict[str, Any]) -> tuple[list[Any], int]:
    """What a loader draws from, and how much it draws for a step: whole batches as peftcli trains on them, so that a
    smaller one at the end of an epoch stays one, or rows for a peer to shuffle."""
    rows = json.loads(Path(job["rows"]).read_text(encoding="utf-8"))
    return (rows["given"], 1) if job["order"] == "given" else (rows["all"], job["batch_rows"])


def collate(drawn: list[Any]) -> dict[str, torch.Tensor]:
    """Rows, or one batch of them, padded on the right to the longest."""
    chosen: list[Row] = drawn[0] if isinstance(drawn[0], list) else drawn
    longest = max(len(row["input_ids"]) for row in chosen)

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in chosen])

    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in chosen])
    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100), "attention_mask": mask}
