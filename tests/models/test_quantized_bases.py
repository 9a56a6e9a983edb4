"""Bases whose linear layers are packed in 4 or 8 bits: the same weights by every road, trained beside and never touched.

Skipped where bitsandbytes is not installed (pip install 'peftcli[quant]').
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from peftcli import adapters
from peftcli.adapters.base import InitContext
from peftcli.adapters.identity import base_fingerprint
from peftcli.adapters.surgery import adapter_of
from peftcli.adapters.updates import update_norms
from peftcli.errors import AdapterError, AdapterWarning, MergeError, ModelError
from peftcli.jobs.merge import merge_adapter
from peftcli.models.dequantized import dequantize, is_quantized, packed_share, storage_name
from peftcli.models.load import load_model
from peftcli.models.skeleton import meta_model
from peftcli.models.source import BaseSource, resolve_base
from peftcli.models.storage import keep_layouts, planned_bytes, storage_of
from peftcli.models.stored import original_weight
from peftcli.models.tokenizer import load_tokenizer
from peftcli.models.weights import is_linear, stored_bytes, weight_view
from peftcli.planning.doubts import LEAST_PACKED
from peftcli.testing.case import inputs_for, logits, loss_of
from peftcli.testing.families import VOCAB, tiny_model
from peftcli.testing.storages import STORAGES, quantized_model

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (pip install 'peftcli[quant]')")

Q_PROJ = "model.layers.0.self_attn.q_proj"


def saved(model: nn.Module, folder: Path) -> BaseSource:
    model.save_pretrained(folder)  # type: ignore[operator]
    return BaseSource(folder.name, str(folder), None, folder)


def wide() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config)


def moved(model: nn.Module, section: Any) -> nn.Module:
    """With an adapter away from its start, as after training."""
    adapters.attach(model, section)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter_of(model).trainable_parameters().values():
            parameter.add_(torch.empty(parameter.shape).normal_(0.0, 0.05, generator=generator))
    return model


# -- the view ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("storage", STORAGES)
def test_the_view_gives_what_the_layer_multiplies_with(family: str, storage: str) -> None:
    model = quantized_model(family, storage).train()
    packed = {path: m for path, m in model.named_modules() if storage_of(m).is_packed}
    assert packed
    plain = dict(tiny_model(family).named_modules())
    for path, module in packed.items():
        view = weight_view(module)
        assert view.shape == weight_view(plain[path]).shape
        asked = module(torch.eye(view.shape[1]))
        answer = asked if view.bias is None else asked - view.bias
        assert torch.allclose(view.dense(), answer.detach().T, atol=1e-5)
        error = (view.dense() - weight_view(plain[path]).dense()).norm() / weight_view(plain[path]).dense().norm()
        assert 0 < float(error) < (0.12 if storage == "nf4" else 0.012)
        assert view.stored_bytes == planned_bytes(storage, *view.shape)
    assert storage_name(model) == storage


@pytest.mark.parametrize("storage", STORAGES)
def test_heads_embeddings_and_norms_keep_their_type(storage: str) -> None:
    model = quantized_model("llama", storage)
    apart = [path for path, m in model.named_modules() if not storage_of(m).is_packed and is_linear(m)]
    assert apart == ["lm_head"]
    assert {p.dtype for m in model.modules() if not storage_of(m).is_packed for p in m.parameters(recurse=False)} == {
        torch.float32
    }


@pytest.mark.parametrize("storage", STORAGES)
def test_a_skeleton_knows_what_will_be_packed(storage: str, tmp_path: Path) -> None:
    source = saved(tiny_model("llama"), tmp_path / "base")
    skeleton, model = meta_model(source, quantization=storage), load_model(source, quantization=storage)
    planned = {path for path, m in skeleton.named_modules() if storage_of(m).is_packed}
    assert planned == {path for path, m in model.named_modules() if storage_of(m).is_packed}
    assert stored_bytes(skeleton, torch.float32) == stored_bytes(model, torch.float32)
    section = {"type": "lora", "r": 4}
    assert adapters.attach(skeleton, section).total == adapters.attach(model, section).total


def test_fused_experts_are_not_packed_and_that_is_known(tmp_path: Path) -> None:
    skeleton = meta_model(saved(tiny_model("mixtral"), tmp_path / "base"), quantization="nf4")
    packed = sum(p.numel() for m in skeleton.modules() if storage_of(m).is_packed for p in [m.weight])
    assert packed_share(skeleton) == pytest.approx(packed / sum(p.numel() for p in skeleton.parameters()))
    assert packed_share(skeleton) < LEAST_PACKED


def test_evaluation_never_repacks_the_weights() -> None:
    model = quantized_model("llama", "nf4").eval()
    before = base_fingerprint(model)
    first = logits(model, inputs_for(model))
    assert base_fingerprint(model) == before
    model.train()
    assert torch.equal(logits(model, inputs_for(model)), first)


def test_weights_that_the_library_has_repacked_are_read_as_they_were() -> None:
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32).to("cpu").eval()
    if not layer.support_avx512bf16_for_cpu:
        pytest.skip("this CPU has no bfloat16 arithmetic: nothing is repacked")
    expected = weight_view(layer).dense()
    layer.support_avx512bf16_for_cpu = True
    layer(torch.randn(2, 64))
    assert getattr(layer.weight.quant_state, "packing_format_for_cpu", False), "the library no longer repacks"
    # scales were rounded to bfloat16 by then
    assert torch.allclose(weight_view(layer).dense(), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("rows", [48, 64, 80, 96, 128])
def test_four_bits_are_read_right_whatever_the_length_of_a_row(rows: int, tmp_path: Path) -> None:
    """NF4's own error on normal numbers is 9 %; scales of a wrong row make it 25 %."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=rows, intermediate_size=rows, num_hidden_layers=1, num_attention_heads=2
    )
    plain = LlamaForCausalLM(config)
    model = load_model(saved(plain, tmp_path / "base"), quantization="nf4")
    for path, module in model.named_modules():
        if storage_of(module).is_packed:
            weight = weight_view(plain.get_submodule(path)).dense()
            assert float((module(torch.eye(rows)).T - weight).norm() / weight.norm()) < 0.11
            assert float((weight_view(module).dense() - weight).norm() / weight.norm()) < 0.11


# -- training beside it ------------------------------------------------------------------------------------------

SECTIONS = [
    {"type": "lora", "r": 4},
    {"type": "lora", "r": 4, "use_dora": True},
    {"type": "lora", "r": 4, "init_lora_weights": "pissa"},
    {"type": "oft", "oft_block_size": 8},
    {"type": "ia3"},
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("storage", STORAGES)
def test_gradients_are_those_on_the_dequantized_base(storage: str, section: Any) -> None:
    model = moved(quantized_model("llama", storage), section).train()

    def gradients() -> dict[str, Tensor]:
        for parameter in model.parameters():
            parameter.grad = None
        loss_of(model).backward()
        return {
            name: p.grad.clone() for name, p in adapter_of(model).trainable_parameters().items() if p.grad is not None
        }

    packed = gradients()
    dequantize(model)
    assert not is_quantized(model)
    plain = gradients()
    assert packed.keys() == plain.keys()
    scale = max(float(g.abs().max()) for g in plain.values())
    assert max(float((packed[name] - plain[name]).abs().max()) for name in plain) < 1e-5 * max(1.0, scale)


@pytest.mark.parametrize("storage", STORAGES)
def test_checkpointed_gradients_are_the_same(storage: str) -> None:
    model = moved(quantized_model("llama", storage), {"type": "lora", "r": 4}).train()
    loss_of(model).backward()
    plain = {name: p.grad.clone() for name, p in adapter_of(model).trainable_parameters().items()}
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    loss_of(model).backward()
    for name, parameter in adapter_of(model).trainable_parameters().items():
        assert torch.allclose(parameter.grad, plain[name], rtol=1e-5, atol=1e-7)


def test_the_first_gradient_is_read_through_the_packed_layer() -> None:
    from peftcli.testing.case import Case

    section = {"type": "lora", "r": 2, "init_lora_weights": "lora_ga"}
    packed = Case(section, "llama", model=lambda: quantized_model("llama", "nf4"))

    def dequantized() -> nn.Module:
        model = quantized_model("llama", "nf4")
        dequantize(model)
        return model

    plain = Case(section, "llama", model=dequantized)
    found, expected = (adapter_of(case.attached()).state() for case in (packed, plain))
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_loftq_starts_nearer_to_the_plain_base(family: str, tmp_path: Path) -> None:
    plain = tiny_model(family)
    source = saved(plain, tmp_path / "base")
    model = load_model(source, quantization="nf4")
    expected, rounded = logits(plain, inputs_for(plain)), logits(model, inputs_for(model))
    section = {"type": "lora", "r": 8, "lora_alpha": 24, "init_lora_weights": "loftq"}
    with pytest.raises(AdapterError, match="not at hand"):
        adapters.attach(model, section)
    original = InitContext(
        torch.Generator().manual_seed(0), original=lambda path, turned: original_weight(source, path, turned)
    )
    adapters.attach(model, section, context=original)
    started = logits(model, inputs_for(model))
    assert float((started - expected).norm()) < 0.8 * float((rounded - expected).norm())
    adapters.save(model, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["init_lora_weights"] is True
    again = load_model(source, quantization="nf4")
    adapters.load(again, tmp_path / "adapter")
    assert torch.equal(logits(again, inputs_for(again)), started)
    with pytest.raises(AdapterError, match="is not quantized"):
        adapters.attach(plain, section, context=original)


@pytest.mark.parametrize("storage", STORAGES)
def test_updates_are_measured_against_what_the_weight_stands_for(storage: str) -> None:
    model = moved(quantized_model("llama", storage), {"type": "lora", "r": 4, "target_modules": ["q_proj"]})
    for found in update_norms(model):
        module = model.get_submodule(found.layer).base_layer
        assert found.relative == pytest.approx(found.norm / float(weight_view(module).dense().norm()), rel=1e-4)


@pytest.mark.parametrize("section", ["full", "freeze", {"type": "lora", "r": 2, "modules_to_save": ["mlp"]}], ids=str)
def test_what_would_train_packed_weights_is_refused(section: Any) -> None:
    model = quantized_model("llama", "nf4")
    with pytest.raises(AdapterError, match="stored as nf4 cannot be trained"):
        adapters.attach(model, section)
    assert not any(type(m).__module__.startswith("peftcli.adapters") for m in model.modules())


def test_layers_that_somebody_else_has_quantized_are_adapted() -> None:
    torch.manual_seed(0)
    layers = (
        bnb.nn.Linear4bit(64, 32, quant_type="fp4", compute_dtype=torch.float32),
        bnb.nn.Linear8bitLt(32, 64, has_fp16_weights=False),
    )
    model = nn.Sequential(*layers).to("cpu")
    summary = adapters.attach(model, {"type": "lora", "r": 2, "target_modules": ["0", "1"]})
    assert summary.targets == ("0", "1")
    assert summary.total == 64 * 32 * 2 + 32 + 64 + 2 * 2 * (64 + 32)
    model(torch.randn(3, 64)).sum().backward()
    assert all(p.grad is not None for p in adapter_of(model).trainable_parameters().values())


# -- merging -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_a_packed_weight_is_never_merged_into(storage: str) -> None:
    model = moved(quantized_model("llama", storage), {"type": "lora", "r": 4}).train()
    expected = logits(model, inputs_for(model))
    with pytest.raises(MergeError, match=f"stored as {storage}"):
        adapters.merge(model)
    assert torch.equal(logits(model, inputs_for(model)), expected)
    adapters.dequantize(model)
    adapters.merge(model)
    assert type(model.get_submodule(Q_PROJ)) is nn.Linear
    assert torch.allclose(logits(model, inputs_for(model)), expected, atol=1e-4)


@pytest.mark.parametrize("storage", STORAGES)
def test_replacing_a_packed_weight_says_why_not(storage: str) -> None:
    view = weight_view(quantized_model("llama", storage).get_submodule(Q_PROJ))
    with pytest.raises(MergeError, match="rounded to it again"):
        view.replace(view.dense())


# -- which base it is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_fingerprint_tells_packed_bases_apart(storage: str, family: str) -> None:
    first, again = (base_fingerprint(quantized_model(family, storage)) for _ in range(2))
    assert first == again
    assert first.dtype == storage
    model = quantized_model(family, storage)
    dequantize(model)
    assert first.difference(base_fingerprint(model)) is None
    assert not first.other_storage(base_fingerprint(model))
    plain = base_fingerprint(tiny_model(family))
    assert first.structure == plain.structure
    assert first.other_storage(plain)
    other = quantized_model(family, storage)
    changed = next(m for m in other.modules() if storage_of(m).is_packed)
    changed.weight.data.view(torch.uint8).flatten()[0] ^= 1
    assert first.difference(base_fingerprint(other)) == "the weights differ"


def test_an_adapter_of_a_packed_base_is_told_on_a_plain_one(tmp_path: Path) -> None:
    model = moved(quantized_model("llama", "nf4"), {"type": "lora", "r": 4})
    adapters.save(model, tmp_path)
    with pytest.warns(AdapterWarning, match="nf4"):
        adapters.load(tiny_model("llama"), tmp_path)
    wrong = tiny_model("llama")
    with torch.no_grad():
        wrong.lm_head.weight.add_(1.0)
    again = quantized_model("llama", "nf4")
    adapters.load(again, tmp_path)
    assert torch.equal(logits(again, inputs_for(again)), logits(model, inputs_for(model)))


# -- checkpoints that are packed already -------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_a_checkpoint_that_is_packed_already_is_opened_as_it_is(storage: str, tmp_path: Path) -> None:
    model = quantized_model("llama", storage)
    source = saved(model, tmp_path / "packed")
    again = load_model(source)
    assert base_fingerprint(again) == base_fingerprint(model)
    assert torch.equal(logits(again, inputs_for(again)), logits(model, inputs_for(model)))
    planned = {path for path, m in meta_model(source).named_modules() if storage_of(m).is_packed}
    assert planned == {path for path, m in model.named_modules() if storage_of(m).is_packed}
    with pytest.raises(ModelError, match="round them twice"):
        load_model(source, quantization="nf4")
    assert json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize("packed_before", [True, False], ids=["checkpoint", "as it is read"])
def test_a_merge_writes_what_was_trained_on(packed_before: bool, tmp_path: Path) -> None:
    tiny = resolve_base("builtin:tiny", folder=tmp_path)
    dtype, source = torch.bfloat16, tiny
    if packed_before:
        dtype, source = torch.float32, saved(load_model(tiny, quantization="nf4"), tmp_path / "packed")
        load_tokenizer(tiny).save_pretrained(source.location)
    model = load_model(source, quantization=None if packed_before else "nf4", dtype=dtype)
    moved(model, {"type": "lora", "r": 4})
    adapters.save(model, tmp_path / "adapter", base_name=source.location)
    rows = torch.arange(5, 21)[None]
    with torch.no_grad():
        expected = model(input_ids=rows).logits.float()
    with pytest.raises(MergeError, match="stored as nf4"):
        merge_adapter(tmp_path / "adapter", output=tmp_path / "merged")
    report = merge_adapter(tmp_path / "adapter", output=tmp_path / "merged", dtype="float32")
    assert report.dequantized == "nf4"
    merged = load_model(BaseSource("merged", str(tmp_path / "merged"), None, tmp_path / "merged"))
    assert not is_quantized(merged)
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    with torch.no_grad():
        found = merged(input_ids=rows).logits
    assert float((found - expected).norm() / expected.norm()) < (1e-4 if dtype == torch.float32 else 0.03)


# -- the reference -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", SECTIONS[:2], ids=["lora", "dora"])
@pytest.mark.parametrize("storage", STORAGES)
def test_the_reference_answers_the_same_on_the_same_base(storage: str, section: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install peft==0.21.2)")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    # rows of a multiple of 64: others the library reads wrong on a CPU
    source = saved(wide(), tmp_path / "base")
    model = moved(load_model(source, quantization=storage), section)
    adapters.save(model, tmp_path / "adapter", base_name=source.location)
    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if storage == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    )
    base = AutoModelForCausalLM.from_pretrained(source.location, quantization_config=config, dtype=torch.float32)
    keep_layouts(base)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    # in evaluation the library rounds the inputs of 8-bit layers too
    theirs.train(storage == "int8")
    assert torch.allclose(logits(theirs, inputs_for(model)), logits(model, inputs_for(model)), atol=2e-5)
