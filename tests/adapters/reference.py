"""Files of one adapter between us and Hugging Face PEFT, both ways, on a tiny Llama."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from peftcli import adapters
from peftcli.adapters.documents import CONFIG_NAME, TENSORS_NAME
from peftcli.testing import tiny_model
from peftcli.testing.case import Case, inputs_for, logits


def require_it_reads_ours(section: Mapping[str, Any], folder: Path) -> None:
    """The reference opens what we trained and saved, and gives our logits."""
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install peft==0.21.2)")
    model = Case(dict(section), "llama").trained()
    adapters.save(model, folder)
    theirs = peft.PeftModel.from_pretrained(tiny_model("llama"), str(folder)).eval()
    inputs = inputs_for(model)
    with adapters.disabled(model):
        effect = float((logits(model, inputs) - logits(theirs, inputs)).abs().max())
    assert effect > 1e-2
    assert float((logits(model, inputs) - logits(theirs, inputs)).abs().max()) < 1e-5 * max(1.0, effect)


def require_we_read_its(config_class: str, fields: Mapping[str, Any], folder: Path) -> torch.nn.Module:
    """We open what the reference made of its `config_class`, give its logits and write its very files; our model."""
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install peft==0.21.2)")
    config = getattr(peft, config_class)(target_modules=["q_proj", "down_proj"], **fields)
    theirs = peft.get_peft_model(tiny_model("llama"), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.empty(parameter.shape).normal_(0.0, 0.1, generator=generator))
    theirs.save_pretrained(str(folder / "theirs"))
    ours = tiny_model("llama")
    adapters.load(ours, folder / "theirs")
    inputs = inputs_for(ours)
    assert float((logits(ours, inputs) - logits(theirs.eval(), inputs)).abs().max()) < 1e-5
    adapters.save(ours, folder / "again")
    assert (folder / "again" / TENSORS_NAME).read_bytes() == (folder / "theirs" / TENSORS_NAME).read_bytes()
    documents = [json.loads((folder / name / CONFIG_NAME).read_text()) for name in ("theirs", "again")]
    for document in documents:
        document.pop("target_modules"), document.pop("task_type")
    assert documents[0] == documents[1]
    return ours
