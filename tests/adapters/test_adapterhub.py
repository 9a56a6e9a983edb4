"""Adapters of AdapterHub's library: training traces followed, folders read, converted, refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertForSequenceClassification, LlamaForCausalLM

from peftcli import adapters
from peftcli.adapters.surgery import adapter_of, attached
from peftcli.errors import AdapterError, NumericalError
from peftcli.models.sublayers import sublayers
from peftcli.testing import tiny_model
from peftcli.testing.case import inputs_for, logits

GROUND = os.environ.get("PEFTCLI_GROUND")
CLASSES = {"base_llama": LlamaForCausalLM, "base_bert": BertForSequenceClassification}
LOSS_TOLERANCE = LOGIT_TOLERANCE = 1e-4
BOTTLENECK: dict[str, Any] = {
    "mh_adapter": False,
    "output_adapter": True,
    "original_ln_before": True,
    "original_ln_after": True,
    "residual_before_ln": True,
    "reduction_factor": 8,
    "non_linearity": "relu",
    "scaling": 1.0,
    "leave_out": [],
}
HOULSBY = {**BOTTLENECK, "mh_adapter": True, "original_ln_before": False, "non_linearity": "swish"}


def cases() -> list[str]:
    return [] if GROUND is None else sorted(path.name for path in Path(GROUND, "golden").glob("ah_*"))


def batch(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{prefix}.")}


@pytest.mark.skipif(GROUND is None, reason="PEFTCLI_GROUND names no measuring ground")
def test_all_traces_are_there() -> None:
    assert len(cases()) >= 9


@pytest.mark.parametrize("case", cases())
def test_training_follows_the_trace(case: str, tmp_path: Path) -> None:
    folder = Path(GROUND or "", "golden")
    trace = json.loads((folder / case / "trace.json").read_text())
    tensors = load_file(folder / trace["base"] / "batches.safetensors")
    golden = load_file(folder / case / "logits.safetensors")
    inputs = batch(tensors, "eval")
    inputs.pop("labels")

    def fresh() -> nn.Module:
        model: nn.Module = CLASSES[trace["base"]].from_pretrained(folder / trace["base"], attn_implementation="eager")
        return model.eval()

    def answer(model: nn.Module) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(**inputs).logits
        return found[:1, -8:] if found.dim() == 3 else found

    model = fresh()
    plain = answer(model)
    summary = adapters.load(model, folder / case / "init", trainable=True)
    assert summary.trainable == trace["trainable_params"]
    assert (answer(model) - golden["init"]).abs().max() < LOGIT_TOLERANCE
    wanted = trace["optimizer_args"]
    groups = adapter_of(model).parameter_groups(wanted["lr"], wanted["weight_decay"])
    optimizer = torch.optim.AdamW(groups, betas=tuple(wanted["betas"]), eps=wanted["eps"])
    for step, expected in enumerate(trace["losses"]):
        loss = model(**batch(tensors, f"train{step % 5}")).loss
        assert abs(loss.item() - expected) < LOSS_TOLERANCE, f"step {step}"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (answer(model) - golden["final"]).abs().max() < LOGIT_TOLERANCE

    theirs = fresh()
    adapters.load(theirs, folder / case / "final")
    assert (answer(theirs) - golden["final"]).abs().max() < LOGIT_TOLERANCE
    adapters.save(theirs, tmp_path / "ours")
    again = fresh()
    adapters.load(again, tmp_path / "ours")
    assert torch.equal(answer(again), answer(theirs))
    adapters.detach(again)
    assert torch.equal(answer(again), plain)


# -- folders made here: how that library names the places of other families ----------------------------------------


def place_of(family: str, output_path: str, role: str, block_path: str) -> str:
    """Where AdapterHub hangs the adapter of a sublayer: on the block, or on the module around the last linear layer."""
    if family in ("bert", "roberta"):
        return output_path.removesuffix(".dense")
    if family == "t5":
        return output_path.rsplit(".", 2)[0]
    return f"{block_path}.{'attention_adapters' if role == 'attention' else 'output_adapters'}"


def write_folder(
    folder: Path, model: nn.Module, family: str, fields: Mapping[str, Any], *, head: Mapping[str, Tensor] | None = None
) -> None:
    """An AdapterHub folder with random bottleneck adapters, as that library would write it."""
    generator = torch.Generator().manual_seed(5)
    width = 32
    size = width // fields["reduction_factor"]
    roles = ("attention", "feed_forward") if fields["mh_adapter"] else ("feed_forward",)
    first = 1 if fields.get("ln_before") else 0
    tensors = {}

    def draw(*shape: int) -> Tensor:
        return torch.empty(shape).normal_(0.0, 0.2, generator=generator)

    for number, site in enumerate(item for item in sublayers(model) if item.role in roles):
        if number // len(roles) in fields.get("leave_out", []):
            continue
        key = f"{place_of(family, site.output_path, site.role, site.block_path)}.adapters.mine"
        tensors |= {
            f"{key}.adapter_down.{first}.weight": draw(size, width),
            f"{key}.adapter_down.{first}.bias": draw(size),
            f"{key}.adapter_up.weight": draw(width, size),
            f"{key}.adapter_up.bias": draw(width),
        }
        if first:
            norm = {"weight": 1 + draw(width), "bias": draw(width)}
            tensors |= {f"{key}.adapter_norm_before.{name}": value for name, value in norm.items()}
            tensors |= {f"{key}.adapter_down.0.{name}": value.clone() for name, value in norm.items()}
        if fields["scaling"] == "learned":
            tensors[f"{key}.scaling"] = 1 + draw(1)
    folder.mkdir()
    document = {
        "config": dict(fields),
        "hidden_size": width,
        "model_class": type(model).__name__,
        "model_name": "somebody/base",
        "name": "mine",
        "version": "adapters.1.3.0",
    }
    (folder / "adapter_config.json").write_text(json.dumps(document))
    save_file(tensors, folder / "adapter.safetensors")
    if head is not None:
        save_file(dict(head), folder / "model_head.safetensors")


FAMILIES = ("llama", "gpt2", "gpt_neox", "opt", "t5", "bart", "roberta")


@pytest.mark.parametrize("family", FAMILIES)
def test_places_of_every_family_are_found(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    write_folder(tmp_path / "theirs", model, family, HOULSBY)
    written = load_file(tmp_path / "theirs" / "adapter.safetensors")
    adapters.load(model, tmp_path / "theirs")
    entries = {entry.key: entry.tensor for entry in adapter_of(model).entries()}
    for site in sublayers(tiny_model(family)):
        theirs = f"{place_of(family, site.output_path, site.role, site.block_path)}.adapters.mine.adapter_up.weight"
        ours = f"base_model.model.{site.output_path}.adapter_up.weight"
        assert torch.equal(entries[ours], written[theirs]), site.output_path
    assert len(entries) == len(written)


def test_norms_scales_and_left_out_layers_are_read(tmp_path: Path) -> None:
    model = tiny_model("llama")
    fields = {**BOTTLENECK, "ln_before": True, "scaling": "learned", "leave_out": [0]}
    write_folder(tmp_path / "theirs", model, "llama", fields)
    adapters.load(model, tmp_path / "theirs")
    keys = {entry.key for entry in adapter_of(model).entries()}
    place = "base_model.model.model.layers.1.mlp.down_proj"
    assert keys == {
        f"{place}.{name}"
        for name in (
            "adapter_down.weight",
            "adapter_down.bias",
            "adapter_up.weight",
            "adapter_up.bias",
            "adapter_ln_before.weight",
            "adapter_ln_before.bias",
            "adapter_scaling",
        )
    }


def test_a_saved_head_becomes_a_trained_copy(tmp_path: Path) -> None:
    model = tiny_model("bert")
    untouched = model.classifier.weight.clone()
    head = {"classifier.weight": torch.randn(3, 32), "classifier.bias": torch.randn(3)}
    write_folder(tmp_path / "theirs", model, "bert", BOTTLENECK, head=head)
    adapters.load(model, tmp_path / "theirs", trainable=True)
    copies = {key: value for key, value in adapter_of(model).trainable_parameters().items() if "classifier" in key}
    assert torch.equal(copies["base_model.model.classifier.weight"], head["classifier.weight"])
    assert all(value.requires_grad for value in copies.values())
    adapters.detach(model)
    assert torch.equal(model.classifier.weight, untouched)


def edited(name: str, value: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        document = json.loads((folder / "adapter_config.json").read_text())
        document["config"][name] = value
        (folder / "adapter_config.json").write_text(json.dumps(document))

    return edit


def unsafe(folder: Path) -> None:
    (folder / "adapter.safetensors").rename(folder / "pytorch_adapter.bin")


def strange_head(folder: Path) -> None:
    save_file({"heads.mine.1.weight": torch.zeros(3, 32)}, folder / "model_head.safetensors")


def other_width(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"hidden_size": 32', '"hidden_size": 48'))


def one_is_missing(folder: Path) -> None:
    tensors = load_file(folder / "adapter.safetensors")
    save_file(dict(list(tensors.items())[1:]), folder / "adapter.safetensors")


def elsewhere(folder: Path) -> None:
    tensors = load_file(folder / "adapter.safetensors")
    save_file(
        {key.replace("layers.1", "layers.7"): value for key, value in tensors.items()}, folder / "adapter.safetensors"
    )


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / "adapter.safetensors")
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, folder / "adapter.safetensors")


def a_stranger(folder: Path) -> None:
    tensors = load_file(folder / "adapter.safetensors")
    save_file({**tensors, "model.invertible_adapters.mine.F.0.weight": torch.zeros(1)}, folder / "adapter.safetensors")


WRONG: list[tuple[str, Callable[[Path], None], str]] = [
    ("pickled", unsafe, "pickled"),
    ("strange head", strange_head, "heads.mine.1.weight"),
    ("other width", other_width, "hidden size 48"),
    ("missing", one_is_missing, "is missing"),
    ("no such layer", elsewhere, "not a sublayer of this model"),
    ("stranger", a_stranger, "has no counterpart"),
    ("nan", not_finite, "not finite"),
    ("invertible", edited("inv_adapter", "nice"), "invertible adapters"),
    ("gated", edited("use_gating", True), "gated"),
    ("cross", edited("cross_adapter", True), "cross-attention"),
    ("per layer", edited("reduction_factor", {"default": 8}), "for each layer"),
    ("odd activation", edited("non_linearity", "mish"), "non_linearity"),
    ("odd arrangement", edited("original_ln_before", False), "none of Houlsby, Pfeiffer, parallel"),
    ("unknown", edited("architecture", "union"), "'union'"),
]


@pytest.mark.parametrize(("damage", "message"), [item[1:] for item in WRONG], ids=[item[0] for item in WRONG])
def test_what_is_not_here_is_refused_by_name(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    write_folder(tmp_path / "theirs", model, "llama", BOTTLENECK)
    damage(tmp_path / "theirs")
    expected = logits(model, inputs_for(model))
    with pytest.raises((AdapterError, NumericalError), match=message):
        adapters.load(model, tmp_path / "theirs")
    assert attached(model) is None
    assert torch.equal(logits(model, inputs_for(model)), expected)


def test_factorised_rules_of_compacter_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    write_folder(tmp_path / "theirs", model, "llama", HOULSBY)
    for name in ("factorized_phm_rule", "shared_W_phm"):
        edited("phm_layer", True)(tmp_path / "theirs")
        edited(name, True)(tmp_path / "theirs")
        with pytest.raises(AdapterError, match=name):
            adapters.load(model, tmp_path / "theirs")


def prefix_folder(folder: Path, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir()
    document = {"config": {"architecture": "prefix_tuning", "prefix_length": 3, "flat": True, **fields}, "name": "p"}
    document |= {"hidden_size": 32, "version": "adapters.1.3.0", "model_name": "somebody/base"}
    (folder / "adapter_config.json").write_text(json.dumps(document))
    save_file(dict(tensors), folder / "adapter.safetensors")


def test_a_prefix_counts_no_positions(tmp_path: Path) -> None:
    """An untrained zero prefix shifts no positions: against values of zero only the weights of attention are shared."""
    model = tiny_model("llama")
    width = 2 * 2 * 2 * 8
    key = "model.prefix_tuning.prefix_tunings.p.self_prefix.control_trans"
    prefix_folder(tmp_path / "theirs", {}, {key: torch.zeros(3 * width)})
    adapters.load(model, tmp_path / "theirs")
    inputs = inputs_for(model, rows=1)
    given = inputs | {"position_ids": torch.arange(inputs["input_ids"].shape[1])[None]}
    assert torch.equal(logits(model, inputs), logits(model, given))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_gating": True}, "gated"),
        ({"leave_out": [0]}, "leave_out"),
        ({"flat": False, "non_linearity": "relu"}, "relu"),
        ({"prefix_length": 5}, "incomplete"),
        ({"flat": False, "non_linearity": "tanh"}, "incomplete"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_prefixes_are_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    key = "model.prefix_tuning.prefix_tunings.p.self_prefix.control_trans"
    prefix_folder(tmp_path / "theirs", fields, {key: torch.zeros(3 * 64)})
    with pytest.raises(AdapterError, match=message):
        adapters.load(model, tmp_path / "theirs")
    assert attached(model) is None
