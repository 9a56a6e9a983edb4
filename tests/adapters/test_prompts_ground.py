"""Cases of the measuring ground for prompt methods: traces of the reference and checkpoints that it wrote."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from peftcli import adapters
from peftcli.adapters.registry import config_class_of_type

GROUND = os.environ.get("PEFTCLI_GROUND")
needs_ground = pytest.mark.skipif(GROUND is None, reason="PEFTCLI_GROUND names no measuring ground")
_CLASSES = {
    "base_llama": "LlamaForCausalLM",
    "base_bert": "BertForSequenceClassification",
    "base_gpt2": "GPT2LMHeadModel",
    "base_t5": "T5ForConditionalGeneration",
}


def golden_dir(case: str) -> Path:
    assert GROUND is not None
    return Path(GROUND).resolve() / "golden" / case


def checkpoint_dir(case: str) -> Path:
    assert GROUND is not None
    return Path(GROUND).resolve() / "hf_checkpoints" / case


def trace(case: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((golden_dir(case) / "trace.json").read_text())
    return found


def base_model(name: str) -> nn.Module:
    model = getattr(transformers, _CLASSES[name]).from_pretrained(golden_dir(name), attn_implementation="eager")
    return model.eval()


def tiny_llama() -> nn.Module:
    folder = checkpoint_dir("base_tiny_llama")
    return transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def replay(case: str, model: nn.Module) -> tuple[float, float]:
    """Trains as the trace did; returns the largest differences of a loss and of a final logit."""
    facts = trace(case)
    batches = load_file(golden_dir(facts["base"]) / "batches.safetensors")
    arguments = dict(facts["optimizer_args"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == facts["trainable_params"]
    optimizer = torch.optim.AdamW(trained, **{**arguments, "betas": tuple(arguments["betas"])})
    worst = 0.0
    for step, expected in enumerate(facts["losses"]):
        loss = model(**_batch(batches, f"train{step % 5}")).loss
        worst = max(worst, abs(float(loss) - expected))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits = model(**_batch(batches, "eval")).logits
    if logits.dim() == 3:
        logits = logits[:1, -8:]
    final = load_file(golden_dir(case) / "logits.safetensors")["final"]
    return worst, float((logits - final).abs().max())


def _batch(batches: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in batches.items() if key.startswith(f"{name}.")}


def _same_document(first: dict[str, Any], second: dict[str, Any]) -> bool:
    def plain(document: dict[str, Any]) -> dict[str, Any]:
        lists = {key: sorted(value) if isinstance(value, list) else value for key, value in document.items()}
        return {key: value for key, value in lists.items() if key != "peft_version"}

    return plain(first) == plain(second)


@needs_ground
@pytest.mark.parametrize(
    "case",
    ["prompt_tuning", "bert_prompt", "t5_prompt", "prefix_tuning", "bert_prefix", "gpt2_prefix", "adaption_prompt"],
)
def test_training_follows_the_reference(case: str) -> None:
    model = base_model(trace(case)["base"])
    adapters.load(model, golden_dir(case) / "init", trainable=True)
    loss, logits = replay(case, model)
    assert loss < 1e-5
    assert logits < 1e-4


@needs_ground
@pytest.mark.parametrize("case", ["p_tuning_mlp", "p_tuning_lstm", "prefix_tuning_projection"])
def test_training_with_an_encoder_follows_the_reference_and_goes_on_from_disk(case: str, tmp_path: Path) -> None:
    document = json.loads((golden_dir(case) / "init" / "adapter_config.json").read_text())
    config, _ = config_class_of_type(document["peft_type"], where=case).from_file(document, where=case)
    model = base_model(trace(case)["base"])
    adapters.attach(model, config)
    start = load_file(golden_dir(case) / "trainable_init.safetensors")
    assert set(start) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.load_state_dict(start, strict=False)
    loss, logits = replay(case, model)
    assert loss < 1e-5
    assert logits < 1e-4

    adapters.save(model, tmp_path)
    again = base_model(trace(case)["base"])
    adapters.load(again, tmp_path, trainable=True)
    trained = {name: parameter for name, parameter in again.named_parameters() if parameter.requires_grad}
    assert set(trained) == set(start)
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in trained.items())


@needs_ground
@pytest.mark.parametrize("case", ["p_tuning_mlp", "prefix_tuning_projection"])
def test_without_the_encoder_training_goes_on_with_the_prompt_itself(case: str) -> None:
    model = base_model(trace(case)["base"])
    adapters.load(model, golden_dir(case) / "init", trainable=True)
    (name,) = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    assert name == "prompt_encoder.default.embedding.weight"
    ids = torch.arange(4, 12)[None]
    model(ids, labels=ids).loss.backward()
    assert bool(model.get_parameter(name).grad.any())


@needs_ground
@pytest.mark.parametrize("case", ["prompt_tuning", "prefix_tuning", "p_tuning_mlp"])
def test_a_checkpoint_of_the_reference_gives_its_logits(case: str) -> None:
    model = tiny_llama()
    adapters.load(model, checkpoint_dir(case))
    io = load_file(checkpoint_dir(case) / "golden_io.safetensors")
    ids, mask = io["input_ids"], io["attention_mask"]
    assert not mask.bool().all(), "the case must hold a padded row"
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
        for row, real in enumerate(mask.bool()):
            alone = model(ids[row : row + 1, real]).logits[0]
            assert float((logits[row, real] - alone).abs().max()) < 1e-5
            if real.all():
                assert float((logits[row] - io["logits"][row, -ids.shape[1] :]).abs().max()) < 1e-5


@needs_ground
@pytest.mark.parametrize("case", ["prompt_tuning", "prefix_tuning", "p_tuning_mlp"])
def test_a_checkpoint_of_the_reference_is_written_again_as_it_was(case: str, tmp_path: Path) -> None:
    model = tiny_llama()
    adapters.load(model, checkpoint_dir(case))
    adapters.save(model, tmp_path)
    tensors, document = "adapter_model.safetensors", "adapter_config.json"
    assert (tmp_path / tensors).read_bytes() == (checkpoint_dir(case) / tensors).read_bytes()
    first, second = ((folder / document).read_text() for folder in (tmp_path, checkpoint_dir(case)))
    assert _same_document(json.loads(first), json.loads(second))


@needs_ground
@pytest.mark.parametrize(("case", "shape"), [("prompt_tuning_t5", (8, 64)), ("prefix_tuning_t5", (4, 256))])
def test_checkpoints_for_an_encoder_decoder_have_the_reference_s_shapes(
    case: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    config = transformers.T5Config(vocab_size=128, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4)
    model = transformers.T5ForConditionalGeneration(config).eval()
    adapters.load(model, checkpoint_dir(case))
    adapters.save(model, tmp_path)
    assert tuple(load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"].shape) == shape
    name = "adapter_model.safetensors"
    assert (tmp_path / name).read_bytes() == (checkpoint_dir(case) / name).read_bytes()
