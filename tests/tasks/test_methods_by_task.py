"""Every method under every task: trains the head, comes back from its file the same, merges or says why not; or is refused
by the recipe with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_bases import write_bert, write_llama
from test_seq2seq_lm import write_t5

from peftcli import adapters
from peftcli.adapters.registry import method_names, parse_method
from peftcli.adapters.surgery import adapter_of
from peftcli.data.parts import part
from peftcli.data.store import EncodedRow, Origin
from peftcli.errors import AdapterError, MergeError, RecipeError
from peftcli.models.heads import SINGLE, LabelHead
from peftcli.models.load import load_model
from peftcli.models.source import resolve_base
from peftcli.models.structure import structure
from peftcli.planning.labels import trained_with_head
from peftcli.recipe import load_recipe
from peftcli.tasks.base import Task
from peftcli.tasks.registry import task

HEAD = LabelHead(("a", "b"), SINGLE, seed=3)
CASES = {
    "bert": ("sequence-classification", write_bert),
    "llama": ("sequence-classification", write_llama),
    "tags": ("token-classification", write_bert),
    "t5": ("seq2seq-lm", write_t5),
    "vectors": ("embedding", write_bert),
    "states": ("embedding", write_llama),
}
SECTIONS: dict[str, dict[str, Any]] = {"adalora": {"total_step": 10}}
NO_BASE = {("bitfit", "llama"), ("bitfit", "t5"), ("bitfit", "states")}
"""Their linear layers have no biases."""
ADAPTED_OTHERWISE = {("adaption_prompt", "t5"), ("adaption_prompt", "vectors")}
DEFAULT = {("lora", "tags"), ("freeze", "bert"), ("prompt_tuning", "llama")}


def rows(name: str) -> list[EncodedRow]:
    """Three rows of other lengths, with what the task learns of them."""
    found = []
    for number, length in enumerate((7, 5, 6)):
        ids = np.arange(4, 4 + length, dtype=np.int32)
        weights, parts, labels = (
            np.zeros(length, dtype=np.float32),
            np.zeros(length, dtype=np.int32),
            ("ab"[number % 2],),
        )
        if name == "token-classification":
            weights[:], parts, labels = 1, np.arange(length, dtype=np.int32), tuple("ab"[i % 2] for i in range(length))
        if name == "seq2seq-lm":
            weights[4:], labels = 1, ()
            parts = np.array([part(text=int(place >= 4)) for place in range(length)], dtype=np.int32)
        if name == "embedding":
            labels, parts = (), np.array([part(text=min(2, place // 2)) for place in range(length)], dtype=np.int32)
        found.append(EncodedRow(ids, weights, Origin(0, "rows", number + 1), parts, labels))
    return found


def attached(found: Task, folder: Path, method: str) -> Any:
    head = HEAD if found.learns_labels else None
    model: Any = load_model(resolve_base(str(folder), folder=folder), auto_class=found.auto_class, head=head)
    model.config.pad_token_id = 0
    section = parse_method({"type": method, **SECTIONS.get(method, {})})
    adapters.attach(model, trained_with_head(section, found, model))
    return model


def pairs() -> list[Any]:
    every = [(method, case) for case in CASES for method in method_names()]
    return [pytest.param(*pair, id="-".join(pair), marks=() if pair in DEFAULT else pytest.mark.slow) for pair in every]


@pytest.mark.parametrize(("method", "case"), pairs())
def test_a_method_under_a_task(method: str, case: str, tmp_path: Path) -> None:
    name, write = CASES[case]
    found = task(name).for_base()
    if found.learns_labels and not parse_method(method).can_train_heads():
        recipe = tmp_path / "r.yaml"
        recipe.write_text(f"task: {name}\nmodel: ./base\ndata: rows.jsonl\nmethod: {method}\n")
        with pytest.raises(RecipeError, match="trains no head"):
            load_recipe(recipe, ())
        return
    write(tmp_path / "base")
    if (method, case) in NO_BASE | ADAPTED_OTHERWISE:
        with pytest.raises(AdapterError):
            attached(found, tmp_path / "base", method)
        return
    model = attached(found, tmp_path / "base", method)
    told = found.with_head(HEAD) if found.learns_labels else found
    batch = told.collate(rows(name), pad_token_id=0)

    model.train()
    adapter = adapter_of(model)
    optimizer = torch.optim.AdamW(adapter.trainable_parameters().values(), lr=0.01)
    before = {key: value.clone() for key, value in adapter.state().items()}
    for _ in range(2):
        optimizer.zero_grad()
        loss = told.loss(model, batch)
        assert loss.weight == told.weigh(batch)
        (loss.total / loss.weight).backward()
        optimizer.step()
    moved = {key for key, value in adapter.state().items() if not torch.equal(value, before[key])}
    if found.learns_labels:
        heads = structure(load_model(resolve_base(str(tmp_path / "base"), folder=tmp_path), auto_class=found.auto_class,
                                     head=HEAD)).heads  # fmt: skip
        assert any(head in key for head in heads for key in moved)

    model.eval()
    with torch.no_grad():
        answer = told.logits(model, batch)
    adapters.save(model, tmp_path / "adapter")
    again: Any = load_model(resolve_base(str(tmp_path / "base"), folder=tmp_path), auto_class=found.auto_class,
                            head=HEAD if found.learns_labels else None)  # fmt: skip
    again.config.pad_token_id = 0
    adapters.load(again, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(told.logits(again, batch), answer, atol=1e-6)
    try:
        adapters.merge(again)
    except MergeError:
        return
    with torch.no_grad():
        assert torch.allclose(told.logits(again, batch), answer, atol=1e-4)
