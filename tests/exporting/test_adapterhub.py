"""Exports for AdapterHub: loaded by that library in an environment of its own, with our logits; and its folders here."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from export_bases import make_adapter, make_base
from safetensors.torch import load_file
from torch import Tensor

import peftcli
from peftcli import adapters
from peftcli.cli.entry import run as peft
from peftcli.errors import AdapterError
from peftcli.exporting.export import export_adapter
from peftcli.models.builtin import builtin_base
from peftcli.models.load import load_model
from peftcli.models.source import resolve_base

PYTHON = Path(os.environ.get("PEFTCLI_ADAPTERHUB") or Path(__file__).parents[2] / ".venv-adapterhub" / "bin" / "python")
needs_library = pytest.mark.skipif(
    not PYTHON.exists(), reason="AdapterHub's library has no environment here: make adapterhub"
)
IDS = [list(range(20, 60)), list(range(300, 340))]
WITHIN = 1e-5
"""Of the largest logit: sums of float32 in another order differ by that much."""
METHODS: dict[str, dict[str, Any]] = {
    "houlsby": {"type": "houlsby"},
    "pfeiffer": {"type": "pfeiffer"},
    "parallel": {"type": "parallel_adapter"},
    "prefix": {"type": "prefix_tuning", "num_virtual_tokens": 8},
    "prefix with a network": {"type": "prefix_tuning", "num_virtual_tokens": 8, "prefix_projection": True},
    "prefix without positions": {"type": "prefix_tuning", "num_virtual_tokens": 8, "shift_positions": False},
    "lora": {"type": "lora", "target_modules": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]},
    "lora of two ranks": {"type": "lora", "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}},
    "pissa": {"type": "lora", "init_lora_weights": "pissa", "target_modules": ["q_proj"]},
    "ia3": {"type": "ia3", "target_modules": ["k_proj", "v_proj", "up_proj"]},
    "norms and scales": {
        "type": "pfeiffer", "ln_before": True, "ln_after": True, "scaling": "learned", "layers_to_transform": [1, 3],
        "bias": False, "non_linearity": "leaky_relu",
    },
}  # fmt: skip
THEIRS: dict[str, dict[str, Any]] = {
    "lora": {"architecture": "lora", "r": 4, "alpha": 6, "attn_matrices": ["q", "v"], "output_lora": True},
    "ia3": {
        "architecture": "lora", "composition_mode": "scale", "r": 1, "alpha": 1, "init_weights": "ia3",
        "attn_matrices": ["k", "v"], "intermediate_lora": True,
    },
    "prefix": {"architecture": "prefix_tuning", "flat": True, "prefix_length": 5},
    "prefix with a network": {"architecture": "prefix_tuning", "prefix_length": 5, "bottleneck_size": 24},
}  # fmt: skip


def logits(folder: Path, base: str = "builtin:tiny") -> Tensor:
    model = load_model(resolve_base(base, folder=Path.cwd()))
    adapters.load(model, folder)
    with torch.inference_mode():
        found: Tensor = model(torch.tensor(IDS)).logits
    return found


def ask(folder: Path, jobs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    """What the library makes of each job: logits with the adapter and without."""
    whole = [
        {
            "base": str(builtin_base("tiny")),
            "cls": "LlamaForCausalLM",
            "ids": IDS,
            "out": str(folder / f"logits-{number}.safetensors"),
        }
        | job
        for number, job in enumerate(jobs)
    ]
    (folder / "jobs.json").write_text(json.dumps(whole))
    command = [str(PYTHON), str(Path(__file__).with_name("adapterhub_library.py")), str(folder / "jobs.json")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"adapters 1.3.0, transformers 4.57.6: {len(jobs)} jobs" in done.stdout
    return [load_file(job["out"]) for job in whole]


def require_same(ours: Tensor, theirs: dict[str, Tensor]) -> None:
    assert (ours - theirs["tuned"]).abs().max() <= WITHIN * ours.abs().max()
    assert (theirs["plain"] - theirs["tuned"]).abs().max() > 0.1


@needs_library
@pytest.mark.slow
def test_the_library_loads_what_was_trained_here(tmp_path: Path) -> None:
    for number, section in enumerate(METHODS.values()):
        recipe = {
            "model": "builtin:tiny", "data": {"train": "builtin:support", "max_length": 128}, "method": section,
            "training": {"max_steps": 20, "batch_size": 8}, "threads": 1, "checkpoint": {"every": None},
        }  # fmt: skip
        place = tmp_path / str(number)
        place.mkdir()
        (place / "recipe.yaml").write_text(json.dumps(recipe))
        peftcli.train(place / "recipe.yaml", output=place / "run")
        report = export_adapter(place / "run", to="adapterhub", output=place / "theirs")
        assert "read again by its rules" in report.proof
    answers = ask(tmp_path, [{"folder": str(tmp_path / str(number) / "theirs")} for number in range(len(METHODS))])
    for number, theirs in enumerate(answers):
        require_same(logits(tmp_path / str(number) / "run" / "adapter"), theirs)


@needs_library
@pytest.mark.slow
def test_what_the_library_made_opens_here(tmp_path: Path) -> None:
    jobs = [{"make": make, "save": str(tmp_path / f"made-{number}")} for number, make in enumerate(THEIRS.values())]
    for number, theirs in enumerate(ask(tmp_path, jobs)):
        made, ours = tmp_path / f"made-{number}", tmp_path / f"ours-{number}"
        require_same(logits(made), theirs)
        assert peft(["convert", str(made), "--to", "peft", "--model", "builtin:tiny", "--output", str(ours)]) == 0
        require_same(logits(ours), theirs)


def test_what_is_written(tmp_path: Path) -> None:
    section = {"type": "prefix_tuning", "num_virtual_tokens": 4}
    folder = make_adapter("builtin:tiny", tmp_path / "adapter", section)
    report = export_adapter(folder, to="adapterhub", output=tmp_path / "out")
    assert report.files == ("adapter.safetensors", "adapter_config.json")
    document = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    about = ("name", "model_class", "model_type", "hidden_size", "version")
    assert [document[key] for key in about] == ["tuned", "LlamaForCausalLM", "llama", 128, "adapters.1.3.0"]
    assert document["config"]["prefix_length"] == 4
    tensors = load_file(tmp_path / "out" / "adapter.safetensors")
    assert {tensor.shape for tensor in tensors.values()} == {(4 * 4 * 2 * 2 * 32,)}
    assert (logits(tmp_path / "out") - logits(folder)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"type": "lora"}, "puts nothing on gate_proj, o_proj of this model"),
        ({"type": "lora", "target_modules": ["q_proj"], "use_dora": True}, "no pair for the update of"),
        ({"type": "ia3", "target_modules": ["down_proj"], "feedforward_modules": ["down_proj"]}, "scales outputs only"),
        ({"type": "prompt_tuning", "num_virtual_tokens": 2}, "has no prompt_tuning"),
        ({"type": "pfeiffer", "modules_to_save": ["lm_head"]}, "heads of labels"),
    ],
)
def test_what_the_library_has_no_place_for(tmp_path: Path, section: dict[str, Any], said: str) -> None:
    folder = make_adapter("builtin:tiny", tmp_path / "adapter", section)
    with pytest.raises(AdapterError, match=said):
        export_adapter(folder, to="adapterhub", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_family_that_the_library_does_not_know(tmp_path: Path) -> None:
    base = make_base("qwen3", tmp_path / "base")
    folder = make_adapter(base, tmp_path / "adapter", {"type": "pfeiffer"})
    with pytest.raises(AdapterError, match="no classes for models of the type qwen3"):
        export_adapter(folder, to="adapterhub", output=tmp_path / "out")
