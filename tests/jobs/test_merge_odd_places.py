"""Weights that no plain call shows (positions made of a mask, convolutions that are read), and rounding in few rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from merge_case import VOCAB, llama, random_model, write_adapter, write_base
from torch import nn
from transformers import AutoModelForCausalLM

from peftcli.errors import CheckFailed
from peftcli.jobs import merge_whole as merge_job
from peftcli.jobs.merge import merge_adapter
from peftcli.jobs.merge_rounding import shake
from peftcli.jobs.opening import open_adapter

OPT: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "word_embed_proj_dim": 16, "max_position_embeddings": 128, "pad_token_id": 1,
}  # fmt: skip
MAMBA: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
POSITIONS: dict[str, dict[str, Any]] = {
    "a copy": {"type": "lora", "r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_positions"]},
    "two factors": {"type": "lora", "r": 4, "target_modules": ["q_proj", "embed_positions"]},
}
ROW = torch.arange(40, 64)[None]


@torch.no_grad()
def require_same_answers(adapter: Path, merged: Path, share: float = 1e-4) -> None:
    """Plain transformers on the folder against the model with its adapter on."""
    model = open_adapter(adapter, dtype=torch.float32, device="cpu").model
    wanted = model(ROW).logits
    found = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(ROW).logits
    assert float((found - wanted).abs().max()) < share * float(wanted.abs().max())


@pytest.mark.parametrize("section", POSITIONS.values(), ids=POSITIONS)
def test_positions_that_are_made_of_the_mask(section: dict[str, Any], tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", random_model("OPTForCausalLM", "OPTConfig", OPT))
    adapter = write_adapter(tmp_path / "a", base, section)
    merge_adapter(adapter, output=tmp_path / "m")
    require_same_answers(adapter, tmp_path / "m")


@pytest.mark.parametrize("section", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("place", [(0, 0), (129, 15)])
def test_a_position_is_caught(
    place: tuple[int, int], section: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_base(tmp_path / "base", random_model("OPTForCausalLM", "OPTConfig", OPT))
    adapter = write_adapter(tmp_path / "a", base, section)
    plant(monkeypatch, "model.decoder.embed_positions.weight", place)
    with pytest.raises(CheckFailed, match="embed_positions \\(1 of its rows\\)"):
        merge_adapter(adapter, output=tmp_path / "m")


@pytest.mark.parametrize("name", ["conv1d.weight", "conv1d.bias", "dt_proj.weight"])
def test_a_weight_that_is_read_and_never_called_is_caught(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_base(tmp_path / "base", random_model("MambaForCausalLM", "MambaConfig", MAMBA))
    section = {"type": "lora", "r": 4, "target_modules": ["in_proj"], "modules_to_save": ["conv1d", "dt_proj"]}
    adapter = write_adapter(tmp_path / "a", base, section, size=0.1)
    merge_adapter(adapter, output=tmp_path / "right")
    require_same_answers(adapter, tmp_path / "right")
    path = f"backbone.layers.1.mixer.{name}"
    plant(monkeypatch, path, (5,))
    with pytest.raises(CheckFailed, match="are not what the adapter computes"):
        merge_adapter(adapter, output=tmp_path / "m")


def plant(monkeypatch: pytest.MonkeyPatch, name: str, place: tuple[int, ...]) -> None:
    honest = merge_job.merge_in_memory

    def merge(model: nn.Module) -> None:
        honest(model)
        with torch.no_grad():
            model.get_parameter(name)[place] += 0.05

    monkeypatch.setattr(merge_job, "merge_in_memory", merge)


@pytest.mark.parametrize("tied", [True, False])
def test_few_trained_rows_of_a_half_base(tied: bool, tmp_path: Path) -> None:
    """Three rows of 264 are rounded: what that does to the logits is measured in those rows, not spread over the table."""
    base = write_base(tmp_path / "base", llama(torch.bfloat16, tie_word_embeddings=tied))
    section = {"type": "lora", "r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [1, 2, 263]}
    adapter = write_adapter(tmp_path / "a", base, section, size=0.1)
    merge_adapter(adapter, output=tmp_path / "m")
    require_same_answers(adapter, tmp_path / "m", share=0.02)


def test_shaking_moves_rows_by_what_rounding_did() -> None:
    model = nn.Linear(64, 3, bias=False)
    nn.init.constant_(model.weight, 0.75)
    shake(model, {"weight": torch.tensor([[0.0], [1.0], [4.0]])}, lambda name: torch.bfloat16, every=False)
    moved = (model.weight.detach() - 0.75).abs()
    unit = 2.0**-8
    assert moved[0].max() == 0.0
    assert 0.4 * unit < float(moved[1].max()) <= 0.5 * unit
    assert 1.6 * unit < float(moved[2].max()) <= 2 * unit


@pytest.mark.parametrize("precise", [True, False])
def test_the_rounding_of_float32_is_a_movement_too(precise: bool) -> None:
    """Half a unit in the last place, added to a float32, is rounded away: it was no movement at all."""
    model = nn.Linear(4096, 1, bias=False)
    nn.init.constant_(model.weight, 0.75)
    model = model.double() if precise else model
    shake(model, {}, lambda name: torch.float32, every=True)
    moved = (model.weight.detach().double() - 0.75) / 2.0**-24
    spread = float(moved.square().mean().sqrt())
    # even chance within half a unit, and rounded to whole units beside that where there are no parts of one
    assert spread == pytest.approx((1 / 12) ** 0.5 if precise else 0.5, rel=0.05)
