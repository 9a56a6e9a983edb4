"""A base that lies in its files answers as one that was loaded, and reads no more than it is asked for."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from peftcli.adapters.identity import base_fingerprint
from peftcli.models import streamed, streaming
from peftcli.models.load import load_model
from peftcli.models.source import BaseSource
from peftcli.models.stored import StoredTensor, tensors_in
from peftcli.models.streamed import InFile, NotStreamed, Stream, StreamedWeight
from peftcli.models.streaming import open_streamed
from peftcli.testing.families import FAMILIES

SHAPE = (12, 5)


@pytest.fixture
def weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StreamedWeight:
    monkeypatch.setattr(streamed, "PIECE", 15)
    save_file({"w": torch.arange(60).reshape(SHAPE).to(torch.bfloat16)}, tmp_path / "w.safetensors")
    stored = tensors_in([tmp_path / "w.safetensors"])["w"]
    return StreamedWeight.of(InFile(stored), "w", Stream(torch.float32))


def values() -> torch.Tensor:
    return torch.arange(60.0).reshape(SHAPE)


def test_facts_need_no_file(weight: StreamedWeight) -> None:
    Path(weight.held.stored.file).unlink()  # type: ignore[attr-defined]
    assert isinstance(weight, nn.Parameter)
    assert (tuple(weight.shape), weight.dtype, weight.device.type, weight.numel()) == (SHAPE, torch.float32, "cpu", 60)
    assert torch.ones(2).to(weight).dtype == torch.float32
    assert isinstance(nn.Parameter(weight.detach().clone(), requires_grad=False), StreamedWeight)


def test_computing_reads_the_values(weight: StreamedWeight) -> None:
    x, ids = torch.randn(3, 5), torch.tensor([[0, 11, 4], [4, 4, 7]])
    assert torch.equal(weight.T @ torch.ones(12, 1), values().T @ torch.ones(12, 1))
    assert torch.allclose(F.linear(x, weight, torch.ones(12)), F.linear(x, values(), torch.ones(12)))
    assert torch.equal(F.embedding(ids, weight), F.embedding(ids, values()))
    assert torch.equal(weight[3], values()[3])
    assert torch.equal(weight[torch.tensor(-1)], values()[-1])
    assert torch.equal(weight[2:4], values()[2:4])
    assert torch.equal(copy.deepcopy(weight), values())
    assert torch.equal(torch.cat([weight, weight]), torch.cat([values(), values()]))
    assert weight.double().dtype == torch.float64


def test_what_is_shown_instead_is_computed_with(weight: StreamedWeight) -> None:
    weight.stream.seen = lambda name, rows, start: rows + start
    moved = values() + torch.arange(12)[:, None] // 3 * 3
    assert torch.equal(weight.read(), moved)
    assert torch.equal(weight[4], moved[4])
    assert torch.equal(F.embedding(torch.tensor([5]), weight), moved[5:6])


def test_nothing_is_written(weight: StreamedWeight) -> None:
    with torch.no_grad(), pytest.raises(NotStreamed):
        weight.mul_(2.0)
    with pytest.raises(NotStreamed):
        weight.data = torch.zeros(SHAPE)
    weight.data = values()
    assert torch.equal(weight + 0, values())


def test_rows_of_a_stored_tensor(weight: StreamedWeight) -> None:
    stored: StoredTensor = weight.held.stored  # type: ignore[attr-defined]
    assert stored.rows(2, 4).dtype == torch.bfloat16
    assert torch.equal(stored.rows(2, 4).float(), values()[2:4])


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "bert", "t5"])
def test_families_answer_alike(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names with and without a prefix, layers that are turned round, fused experts, buffers, tied tables."""
    monkeypatch.setattr(streaming, "SMALL", 0)
    monkeypatch.setattr(streamed, "PIECE", 4096)
    model = FAMILIES[name]()
    model.save_pretrained(tmp_path)
    kind = type(model).__name__
    auto_class = "AutoModelForSeq2SeqLM" if "Conditional" in kind else "AutoModelForCausalLM"
    auto_class = "AutoModelForSequenceClassification" if "Classification" in kind else auto_class
    source = BaseSource(name, str(tmp_path), None, tmp_path)
    loaded, found = load_model(source, auto_class=auto_class), open_streamed(source, auto_class=auto_class)
    assert base_fingerprint(found.model) == base_fingerprint(loaded)
    inputs = {"input_ids": torch.tensor([[2, 7, 9, 3]])}
    inputs |= {"decoder_input_ids": inputs["input_ids"]} if "Seq2Seq" in auto_class else {}
    with torch.no_grad():
        torch.testing.assert_close(found.model(**inputs)[0], loaded(**inputs)[0], rtol=1e-4, atol=1e-4)
