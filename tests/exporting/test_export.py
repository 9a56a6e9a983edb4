"""Exports that need no package of another tool, and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from export_bases import make_adapter
from safetensors.torch import load_file

from peftcli import adapters
from peftcli.errors import AdapterError, CheckFailed, RecipeError, StorageError
from peftcli.exporting.answers import OwnAnswers, differs_from_base, require_same
from peftcli.exporting.export import export_adapter
from peftcli.exporting.hugging_face import serving_notes
from peftcli.models.load import load_model
from peftcli.models.source import resolve_base

LORA = {"type": "lora", "r": 4, "lora_alpha": 6, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}}


def tiny() -> Any:
    return load_model(resolve_base("builtin:tiny", folder=Path.cwd()))


def test_mlx_by_its_own_formula(tmp_path: Path) -> None:
    """The model with scale (x A) B added by hooks, layer by layer, answers as ours with the adapter."""
    folder = make_adapter("builtin:tiny", tmp_path / "adapter", LORA)
    with warnings.catch_warnings():
        # not of the copy, which is read again
        warnings.simplefilter("error")
        report = export_adapter(folder, to="mlx", output=tmp_path / "out")
    assert report.notes == ()
    assert report.files == ("adapter_config.json", "adapters.safetensors")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    tensors, given = load_file(tmp_path / "out" / "adapters.safetensors"), config["lora_parameters"]
    ours, plain = tiny(), tiny()
    adapters.load(ours, folder)
    paths = [f"model.layers.{number}.{key}" for number in range(config["num_layers"]) for key in given["keys"]]
    assert {f"{path}.{name}" for path in paths for name in ("lora_a", "lora_b")} == set(tensors)
    for path in paths:
        lora_a, lora_b = tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"]
        assert lora_a.shape[1] == lora_b.shape[0] == given["rank"]
        plain.get_submodule(path).register_forward_hook(
            lambda module, inputs, output, a=lora_a, b=lora_b: output + given["scale"] * (inputs[0] @ a) @ b
        )
    ids = torch.arange(40, 60)[None]
    with torch.inference_mode():
        assert torch.allclose(plain(ids).logits, ours(ids).logits, atol=2e-4)
        assert not torch.allclose(tiny()(ids).logits, ours(ids).logits, atol=0.1)


def test_peft_files_are_the_adapters_own(tmp_path: Path) -> None:
    folder = make_adapter("builtin:tiny", tmp_path / "adapter", {"type": "lora", "r": 4})
    report = export_adapter(folder, to="peft", output=tmp_path / "out")
    for name in report.files:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert "peftcli.json" not in report.files


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, ""),
        ({"r": 64}, "--max-lora-rank 64"),
        ({"r": 1024}, "rank 1024"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "beside its pairs"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
    ],
)
def test_what_a_server_can_serve(fields: dict[str, Any], said: str) -> None:
    document = {"r": 8, "bias": "none", **fields}
    found = serving_notes(document, "lora", pairs_of(document["r"]))
    assert said in " ".join(note.text for note in found)
    assert bool(said) == bool(found)
    assert "its method is ia3" in serving_notes({}, "ia3", {})[0].message


def pairs_of(rank: int) -> dict[str, tuple[int, ...]]:
    path = "base_model.model.model.layers.0.self_attn.q_proj"
    return {f"{path}.lora_A.weight": (rank, 32), f"{path}.lora_B.weight": (64, rank)}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"base_model.model.model.embed_tokens.lora_embedding_A": (8, 100)}, "no pair of a linear layer"),
        ({"base_model.model.model.layers.0.mlp.experts.lora_A.weight": (4, 8, 32)}, "no pair of a linear layer"),
        ({"base_model.model.lm_head.weight": (100, 32)}, "no pair of a linear layer"),
        ({"base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight": (4, 32)}, "pairs of rank 4"),
    ],
)
def test_what_the_tensors_say_of_serving(more: dict[str, tuple[int, ...]], said: str) -> None:
    """A configuration may say nothing of it: a pattern that matches embeddings, a file of another tool."""
    (found,) = serving_notes({"r": 8}, "lora", pairs_of(8) | more)
    assert found.refuses
    assert said in found.text


@pytest.mark.parametrize(
    "section",
    [
        {"type": "lora", "r": 2, "use_dora": True},
        {"type": "lora", "r": 2, "modules_to_save": ["lm_head"]},
        {"type": "lora", "r": 2, "target_modules": ["q_proj"], "trainable_token_indices": [5]},
        {"type": "prompt_tuning", "num_virtual_tokens": 2},
        {"type": "bitfit"},
    ],
)
def test_more_than_pairs_is_refused_for_servers_of_adapters(tmp_path: Path, section: dict[str, Any]) -> None:
    folder = make_adapter("builtin:tiny", tmp_path / "adapter", section)
    with pytest.raises(AdapterError, match="not a low-rank pair"):
        export_adapter(folder, to="mlx", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_usage(tmp_path: Path) -> None:
    folder = make_adapter("builtin:tiny", tmp_path / "adapter", {"type": "lora", "r": 2})
    for settings, said in (
        ({"to": "onnx"}, "cannot export to 'onnx'"),
        ({"to": "mlx", "merged": True}, "takes an adapter"),
        ({"to": "peft", "kind": "f16"}, "--type has no effect"),
    ):
        with pytest.raises(RecipeError, match=said):
            export_adapter(folder, output=tmp_path / "out", **settings)  # type: ignore[arg-type]
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match="already exists"):
        export_adapter(folder, to="peft", output=tmp_path / "out")


def test_a_program_that_leaves_the_adapter_out_is_caught() -> None:
    own = OwnAnswers([[1, 2]], [[3, 4]], [[5, 6]])
    with pytest.raises(CheckFailed, match="answers as the base does"):
        differs_from_base(own, [[5, 6]])
    model = tiny()
    with torch.inference_mode():
        order = model(torch.tensor([[40, 41]])).logits[0, -1].argsort(descending=True)
    best, worst = int(order[0]), int(order[-1])
    ours = OwnAnswers([[40, 41]], [[best]], None)
    assert "1 of 1 greedy answers equal ours" in require_same(model, ours, [[best]], 1e-3, "here")
    with pytest.raises(CheckFailed, match="answers otherwise"):
        require_same(model, ours, [[worst]], 1e-3, "here")
    with pytest.raises(CheckFailed, match="answers otherwise"):
        require_same(model, ours, [[]], 1e-3, "here")
