"""`peft convert`: any mergeable adapter as LoRA with the error stated, AdapterHub folders in our format."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peftcli import adapters
from peftcli.adapters.surgery import adapter_of
from peftcli.cli.entry import run
from peftcli.errors import AdapterError, MergeError, RecipeError, StorageError
from peftcli.jobs.convert import convert_adapter, convert_text
from peftcli.testing import Case, tiny_model
from peftcli.testing.case import inputs_for, logits


def base_folder(family: str, folder: Path) -> str:
    model: Any = tiny_model(family)
    model.save_pretrained(folder)
    return str(folder)


def written(section: Mapping[str, Any], family: str, tmp_path: Path, *, perturb: float = 0.1) -> tuple[Path, nn.Module]:
    """An adapter folder as after training, beside its base in `base/`."""
    base_folder(family, tmp_path / "base")
    model = Case(section, family, perturb=perturb).trained()
    adapters.save(model, tmp_path / "adapter", base_name="../base")
    return tmp_path / "adapter", model


@pytest.mark.parametrize(
    ("section", "family"),
    [
        ({"type": "lokr", "r": 4}, "llama"),
        ({"type": "ia3"}, "gpt2"),
        ({"type": "dora", "r": 4}, "llama"),
        ({"type": "pissa", "r": 4}, "llama"),
        ({"type": "full"}, "qwen"),
        ({"type": "lora", "r": 4, "trainable_token_indices": [5, 6]}, "t5"),
        ({"type": "lora", "r": 4, "modules_to_save": ["lm_head"]}, "qwen"),
    ],
    ids=["lokr", "ia3 with biases", "dora", "pissa", "full, tied", "token rows", "head untied"],
)
def test_full_rank_loses_nothing(section: dict[str, Any], family: str, tmp_path: Path) -> None:
    folder, model = written(section, family, tmp_path)
    report = convert_adapter(folder, to="lora", output=tmp_path / "out", r=96)
    assert report.relative_error < 1e-5
    again = tiny_model(family)
    adapters.load(again, tmp_path / "out")
    assert adapter_of(again).config.name == "lora"
    expected = logits(model, inputs_for(model))
    assert torch.allclose(logits(again, inputs_for(again)), expected, atol=1e-4 * max(1.0, float(expected.abs().max())))
    assert report.max_difference < 1e-3 * report.adapter_effect


def test_the_rank_is_found_and_the_error_is_true(tmp_path: Path) -> None:
    folder, _ = written({"type": "loha", "r": 3}, "llama", tmp_path)
    exact = convert_adapter(folder, to="lora", output=tmp_path / "exact")
    assert all(cut.relative_error <= 0.01 for cut in exact.layers)
    report = convert_adapter(folder, to="lora", output=tmp_path / "cut", r=2)
    assert {cut.rank for cut in report.layers} == {2}
    tensors = load_file(tmp_path / "cut" / "adapter_model.safetensors")
    merged = tiny_model("llama")
    adapters.load(merged, folder)
    adapters.merge(merged)
    plain, squares, errors = tiny_model("llama"), 0.0, 0.0
    for cut in report.layers:
        update = (merged.get_submodule(cut.layer).weight - plain.get_submodule(cut.layer).weight).detach()
        pair = [tensors[f"base_model.model.{cut.layer}.lora_{half}.weight"] for half in "BA"]
        left = update - pair[0] @ pair[1]
        values = torch.linalg.svdvals(update)
        assert math.isclose(float(left.norm()), float(values[2:].norm()), rel_tol=1e-3), "not the nearest of rank 2"
        assert math.isclose(cut.relative_error, float(left.norm() / update.norm()), rel_tol=1e-3)
        squares, errors = squares + float(update.norm()) ** 2, errors + float(left.norm()) ** 2
    assert math.isclose(report.relative_error, math.sqrt(errors / squares), rel_tol=1e-3)
    assert f"{report.relative_error:.3g}" in convert_text(report)


def test_ranks_never_exceed_what_a_layer_holds(tmp_path: Path) -> None:
    folder, _ = written({"type": "lora", "r": 3, "rank_pattern": {"q_proj": 2}}, "llama", tmp_path)
    report = convert_adapter(folder, to="lora", output=tmp_path / "out", r=16)
    assert {cut.rank for cut in report.layers} == {2, 3}
    document = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert document["r"] == 3
    assert set(document["rank_pattern"].values()) == {2}


def test_norms_that_changed_too_are_kept_whole(tmp_path: Path) -> None:
    folder, model = written({"type": "freeze", "num_layers": 1}, "llama", tmp_path)
    report = convert_adapter(folder, to="lora", output=tmp_path / "out", r=48)
    assert "model.layers.1.input_layernorm" in report.kept_whole
    again = tiny_model("llama")
    adapters.load(again, tmp_path / "out")
    assert torch.allclose(logits(again, inputs_for(again)), logits(model, inputs_for(model)), atol=1e-3)


@pytest.mark.parametrize(
    ("section", "family", "error", "message"),
    [
        ({"type": "bottleneck"}, "llama", MergeError, "non-linearity"),
        ({"type": "prompt_tuning", "num_virtual_tokens": 2}, "llama", MergeError, "cannot be merged"),
        ({"type": "ln_tuning"}, "llama", AdapterError, "no linear layer"),
        ({"type": "freeze", "num_layers": 1}, "mixtral", AdapterError, "fused weight"),
    ],
    ids=["adapter layers", "prompt", "norms only", "experts"],
)
def test_what_has_no_low_rank_form_is_refused(
    section: dict[str, Any], family: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder, _ = written(section, family, tmp_path)
    with pytest.raises(error, match=message):
        convert_adapter(folder, to="lora", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def hub_folder(folder: Path, base: str) -> dict[str, Tensor]:
    """A Pfeiffer adapter of AdapterHub's on the tiny BERT, with a head."""
    tensors: dict[str, Tensor] = {}
    for number in range(2):
        key = f"bert.encoder.layer.{number}.output.adapters.mine"
        tensors |= {
            f"{key}.adapter_down.0.weight": torch.randn(8, 32) / 3,
            f"{key}.adapter_down.0.bias": torch.randn(8),
            f"{key}.adapter_up.weight": torch.randn(32, 8) / 3,
            f"{key}.adapter_up.bias": torch.randn(32),
        }
    fields = {"mh_adapter": False, "output_adapter": True, "original_ln_before": True, "original_ln_after": True}
    fields |= {"residual_before_ln": True, "reduction_factor": 4, "non_linearity": "relu", "scaling": 1.0}  # type: ignore[dict-item]
    folder.mkdir()
    document = {"config": fields, "hidden_size": 32, "model_class": "BertForSequenceClassification"}
    document |= {"model_name": base, "name": "mine", "version": "adapters.1.3.0"}
    (folder / "adapter_config.json").write_text(json.dumps(document))
    save_file(tensors, folder / "adapter.safetensors")
    save_file(
        {"classifier.weight": torch.randn(3, 32), "classifier.bias": torch.randn(3)}, folder / "model_head.safetensors"
    )
    return tensors


def test_an_adapterhub_folder_in_our_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = base_folder("bert", tmp_path / "base")
    hub_folder(tmp_path / "theirs", "nobody/knows")
    theirs, ours = str(tmp_path / "theirs"), str(tmp_path / "ours")
    assert run(["convert", theirs, "--to", "peft", "--output", ours, "--model", base, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["method"], report["max_difference"]) == ("bottleneck", 0.0)
    assert report["parameters"] == 2 * (8 * 32 + 8 + 32 * 8 + 32) + 3 * 32 + 3
    expected, found = tiny_model("bert"), tiny_model("bert")
    adapters.load(expected, theirs)
    adapters.load(found, ours)
    assert torch.equal(logits(found, inputs_for(found)), logits(expected, inputs_for(expected)))
    document = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert document["peft_type"] == "BOTTLENECK"
    assert document["base_model_name_or_path"] == base
    assert json.loads((tmp_path / "ours" / "peftcli.json").read_text())["base"]["fingerprint"]


def test_wrong_uses(tmp_path: Path) -> None:
    folder, _ = written({"type": "lora", "r": 2}, "llama", tmp_path)
    out = tmp_path / "out"
    with pytest.raises(RecipeError, match="already"):
        convert_adapter(folder, to="peft", output=out)
    with pytest.raises(RecipeError, match="--r"):
        convert_adapter(folder, to="peft", output=out, r=4)
    with pytest.raises(RecipeError, match="gguf"):
        convert_adapter(folder, to="gguf", output=out)
    out.mkdir()
    with pytest.raises(StorageError, match="exists"):
        convert_adapter(folder, to="lora", output=out)


def test_what_lies_beside_an_adapter_goes_along(tmp_path: Path) -> None:
    folder, _ = written({"type": "lokr", "r": 2}, "llama", tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("about another method")
    convert_adapter(folder, to="lora", output=tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "out" / "README.md").exists()
