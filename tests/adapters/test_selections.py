"""Selections: which of the base's own tensors are trained, under which names, and that the base itself stays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from peftcli import adapters
from peftcli.adapters.methods.ln_tuning.config import LnTuningConfig
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError
from peftcli.jobs.inspection import Inspection, inspection_text, layer_updates
from peftcli.models.structure import embeddings_are_tied
from peftcli.testing import Case, tiny_model
from peftcli.testing.case import inputs_for, logits

GROUND = os.environ.get("PEFTCLI_GROUND")
needs_ground = pytest.mark.skipif(GROUND is None, reason="PEFTCLI_GROUND names no measuring ground")


def stored_keys(model: nn.Module) -> set[str]:
    return {entry.key.removeprefix("base_model.model.") for entry in adapter_of(model).entries()}


def step(model: nn.Module, *, rate: float = 1e-2) -> None:
    optimizer = torch.optim.SGD(adapter_of(model).parameter_groups(rate, 0.0))
    model(**inputs_for(model, labels=True)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


# -- LN tuning -----------------------------------------------------------------------------------------------------


@needs_ground
def test_ln_tuning_follows_the_references_trace(tmp_path: Path) -> None:
    folder = Path(GROUND or "", "golden")
    trace = json.loads((folder / "ln_tuning" / "trace.json").read_text())
    tensors = load_file(folder / "base_llama" / "batches.safetensors")
    golden = load_file(folder / "ln_tuning" / "logits.safetensors")
    model = LlamaForCausalLM.from_pretrained(folder / "base_llama", attn_implementation="eager").eval()
    adapters.load(model, folder / "ln_tuning" / "init", trainable=True)
    wanted = trace["optimizer_args"]
    optimizer = torch.optim.AdamW(adapter_of(model).parameter_groups(wanted["lr"], wanted["weight_decay"]))
    for number, expected in enumerate(trace["losses"]):
        rows = {key.split(".", 1)[1]: v for key, v in tensors.items() if key.startswith(f"train{number % 5}.")}
        loss = model(**rows).loss
        assert abs(loss.item() - expected) < 1e-5, f"step {number}"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def answer() -> Tensor:
        ids, mask = tensors["eval.input_ids"], tensors["eval.attention_mask"]
        return logits(model, {"input_ids": ids, "attention_mask": mask})[:1, -8:]

    assert (answer() - golden["final"]).abs().max() < 1e-4
    adapters.save(model, tmp_path / "ours")
    theirs = folder / "ln_tuning" / "final" / "adapter_model.safetensors"
    assert load_file(tmp_path / "ours" / "adapter_model.safetensors").keys() == load_file(theirs).keys()
    adapters.merge(model)
    assert (answer() - golden["final"]).abs().max() < 1e-4


@needs_ground
def test_the_references_checkpoint_is_read_and_written_again(tmp_path: Path) -> None:
    folder = Path(GROUND or "", "hf_checkpoints")
    model = LlamaForCausalLM.from_pretrained(folder / "base_tiny_llama").eval()
    adapters.load(model, folder / "ln_tuning")
    golden = load_file(folder / "ln_tuning" / "golden_io.safetensors")
    real = golden["attention_mask"].bool()
    inputs = {name: golden[name] for name in ("input_ids", "attention_mask")}
    assert (logits(model, inputs) - golden["logits"])[real].abs().max() < 1e-5
    adapters.save(model, tmp_path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / name).read_bytes() == (folder / "ln_tuning" / name).read_bytes()
    adapters.merge(model)
    assert (logits(model, inputs) - golden["merged_logits"])[real].abs().max() < 1e-4


@pytest.mark.parametrize(
    ("family", "block", "norms"),
    [
        ("llama", "model.layers.0.", {"input_layernorm", "post_attention_layernorm"}),
        # not q_norm and k_norm
        ("qwen", "model.layers.0.", {"input_layernorm", "post_attention_layernorm"}),
        ("gpt2", "transformer.h.0.", {"ln_1", "ln_2"}),
        ("bert", "bert.encoder.layer.0.", {"attention.output.LayerNorm", "output.LayerNorm"}),
        ("t5", "decoder.block.0.layer.", {"0.layer_norm", "1.layer_norm", "2.layer_norm"}),
    ],
)
def test_ln_tuning_takes_the_norms_of_the_stream(family: str, block: str, norms: set[str]) -> None:
    model = tiny_model(family)
    summary = adapters.attach(model, "ln_tuning")
    assert {path.removeprefix(block) for path in summary.targets if path.startswith(block)} == norms
    outside = [path for path in summary.targets if not any(char.isdigit() for char in path.split(".h.")[0])]
    assert outside, "the last norm of the stack lies outside the blocks"
    assert all(".ln_tuning_layers." in key for key in stored_keys(model))


def test_ln_tuning_writes_the_names_that_the_reference_reads(tmp_path: Path) -> None:
    model = tiny_model("llama")
    adapters.attach(model, {"type": "ln_tuning", "modules_to_save": ["lm_head"]})
    adapters.save(model, tmp_path)
    document = json.loads((tmp_path / "adapter_config.json").read_text())
    assert document["target_modules"] == ["input_layernorm", "norm", "post_attention_layernorm"]
    assert set(document) == {
        *("auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "modules_to_save"),
        *("peft_type", "peft_version", "revision", "target_modules", "task_type"),
    }
    assert "base_model.model.lm_head.weight" in load_file(tmp_path / "adapter_model.safetensors")


def test_ln_tuning_narrowed() -> None:
    model = tiny_model("llama")
    summary = adapters.attach(model, {"type": "ln_tuning", "target_modules": ["norm"]})
    assert summary.targets == ("model.norm",)
    adapters.detach(model)
    summary = adapters.attach(model, {"type": "ln_tuning", "exclude_modules": ["norm"], "layers_to_transform": [1]})
    assert summary.targets == ("model.layers.1.input_layernorm", "model.layers.1.post_attention_layernorm")
    adapter = adapter_of(model)
    written = adapter.file_config()
    assert isinstance(written, LnTuningConfig)
    assert written.target_modules == sorted(summary.targets), "the file has no place for a layer rule"
    adapters.detach(model)
    with pytest.raises(AdapterError, match="q_proj"):
        adapters.attach(model, {"type": "ln_tuning", "target_modules": ["q_proj"]})


# -- freeze --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "prefixes"),
    [
        ({}, {"model.layers.0.", "model.layers.1."}),
        ({"num_layers": 1}, {"model.layers.1."}),
        ({"target_modules": ["lm_head"]}, {"lm_head."}),
        ({"num_layers": 1, "target_modules": ["norm"]}, {"model.layers.1.", "model.norm."}),
        ({"target_modules": r".*layers\.0\.mlp"}, {"model.layers.0.mlp."}),
    ],
    ids=["default", "one block", "named", "both", "pattern"],
)
def test_freeze_trains_what_it_is_told(fields: dict[str, Any], prefixes: set[str]) -> None:
    model = tiny_model("llama")
    names = {name for name, _ in model.named_parameters()}
    adapters.attach(model, {"type": "freeze", **fields})
    assert stored_keys(model) == {name for name in names if name.startswith(tuple(prefixes))}


def test_freeze_leaves_out_what_is_excluded() -> None:
    model = tiny_model("llama")
    adapters.attach(model, {"type": "freeze", "num_layers": 1, "exclude_modules": ["mlp"]})
    assert all("mlp" not in key and key.startswith("model.layers.1.") for key in stored_keys(model))


def test_freeze_takes_the_last_blocks_of_each_stack() -> None:
    model = tiny_model("t5")
    adapters.attach(model, {"type": "freeze", "num_layers": 1})
    assert {key.split(".block.")[0] + key.split(".block.")[1][0] for key in stored_keys(model)} == {
        "encoder1",
        "decoder1",
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 3}, "this model has 2 blocks"),
        ({"num_layers": 0}, "nothing is left"),
        ({"target_modules": ["lm_hed"]}, "lm_hed"),
    ],
    ids=["too many", "none", "misspelt"],
)
def test_freeze_says_what_does_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        adapters.attach(tiny_model("llama"), {"type": "freeze", **fields})


# -- full ----------------------------------------------------------------------------------------------------------


def test_full_trains_every_parameter_and_leaves_the_base() -> None:
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = logits(model, inputs_for(model))
    summary = adapters.attach(model, "full")
    assert summary.trainable == sum(value.numel() for value in before.values())
    assert stored_keys(model) == set(before)
    step(model)
    assert not torch.equal(logits(model, inputs_for(model)), plain)
    with adapters.disabled(model):
        assert torch.equal(logits(model, inputs_for(model)), plain)
    adapters.detach(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", ["qwen", "gpt2", "t5", "bart"])
def test_tied_tensors_are_one_copy_and_stay_tied(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    assert embeddings_are_tied(model)
    shared = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    own = {name for name, _ in model.named_parameters()}
    assert len(shared) > len(own)
    adapters.attach(model, "full")
    assert len(stored_keys(model)) == len(own)
    step(model)
    tuned = logits(model, inputs_for(model))
    adapters.save(model, tmp_path / "a")
    adapters.merge(model)
    assert embeddings_are_tied(model)
    assert {name for name, _ in model.named_parameters()} == own, "the merged model ties what the base ties"
    assert torch.allclose(logits(model, inputs_for(model)), tuned, atol=1e-5)
    again = tiny_model(family)
    adapters.load(again, tmp_path / "a")
    assert torch.equal(logits(again, inputs_for(again)), tuned)


def test_one_of_two_tied_embeddings_can_be_trained_alone() -> None:
    model = tiny_model("qwen")
    adapters.attach(model, {"type": "freeze", "target_modules": ["lm_head"]})
    step(model, rate=1.0)
    tuned = logits(model, inputs_for(model))
    adapters.merge(model)
    assert not embeddings_are_tied(model)
    assert not model.config.tie_word_embeddings
    assert torch.allclose(logits(model, inputs_for(model)), tuned, atol=1e-5)


def test_masters_are_float32_over_a_half_precision_base() -> None:
    """A step too small for bfloat16 is not lost: masters keep it, and the base keeps its type."""
    model = tiny_model("llama").to(torch.bfloat16)
    adapters.attach(model, "full")
    parameters = adapter_of(model).trainable_parameters()
    before = {name: value.detach().clone() for name, value in parameters.items()}
    step(model, rate=1e-6)
    assert any(not torch.equal(value, before[name]) for name, value in parameters.items())
    assert logits(model, inputs_for(model)).dtype == torch.bfloat16


def test_full_equals_training_the_plain_model() -> None:
    model, plain = tiny_model("gpt2"), tiny_model("gpt2")
    adapters.attach(model, "full")
    plain.requires_grad_(True)
    ours = torch.optim.AdamW(adapter_of(model).parameter_groups(1e-2, 0.0))
    theirs = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0)
    for number in range(3):
        for current, optimizer in ((model, ours), (plain, theirs)):
            optimizer.zero_grad()
            current(**inputs_for(current, seed=number, labels=True)).loss.backward()
            optimizer.step()
    inputs = inputs_for(plain)
    assert torch.allclose(logits(model, inputs), logits(plain, inputs), atol=1e-4)


def test_bitfit_says_why_a_base_without_biases_does_not_do() -> None:
    with pytest.raises(AdapterError, match="has none"):
        adapters.attach(tiny_model("llama"), "bitfit")
    model = Case({"type": "bitfit"}, "gpt2").attached()
    assert all(key.endswith(".bias") for key in stored_keys(model))


def test_a_change_of_a_zero_tensor_has_no_relative_size() -> None:
    model = tiny_model("gpt2")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    adapters.attach(model, {"type": "bitfit"})
    with torch.no_grad():
        for parameter in adapter_of(model).trainable_parameters().values():
            parameter.add_(1.0)
    updates = layer_updates(model)
    assert updates
    assert all(update.relative is None for update in updates)
    assert all(update.norm > 1 for update in updates)
    text = inspection_text(Inspection("here", "adapter", {}, updates))
    assert "%" not in text
    assert text.splitlines()[3].split()[2] == "-"
