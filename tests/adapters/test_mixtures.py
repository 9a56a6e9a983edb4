"""LoRA on mixtures of experts: adapters from before the experts were fused, transposed experts, and names that the
reference takes for experts. The right answers come from weights that are changed by hand."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from peftcli import adapters
from peftcli.adapters.documents import CONFIG_NAME, TENSORS_NAME
from peftcli.adapters.methods.lora.experts import LoraParameter
from peftcli.adapters.methods.lora.routed import RoutedWeight
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError, AdapterWarning

PREFIX = "base_model.model."
IDS = torch.arange(1, 25).view(2, 12)
SIZES: Mapping[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
}
SHARED: Mapping[str, Any] = {
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}


PROJECTIONS = ["gate_proj", "up_proj", "down_proj"]


def _seeded(kind: str, config: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**{**SIZES, **changes})).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # some families leave experts and routers at zero
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.1, generator=generator))
    return model


def mixtral() -> Any:
    return _seeded("MixtralForCausalLM", "MixtralConfig", num_local_experts=4)


def qwen3() -> Any:
    return _seeded("Qwen3MoeForCausalLM", "Qwen3MoeConfig", num_experts=4, moe_intermediate_size=24, head_dim=8)


def glm() -> Any:
    return _seeded("Glm4MoeForCausalLM", "Glm4MoeConfig", head_dim=8, **SHARED)


def deepseek() -> Any:
    return _seeded("DeepseekV3ForCausalLM", "DeepseekV3Config", **{**SHARED, **LATENT, "num_key_value_heads": 4})


def qwen2() -> Any:
    sizes = {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
    return _seeded("Qwen2MoeForCausalLM", "Qwen2MoeConfig", **sizes)


def gpt_oss(width: int) -> Any:
    sizes = {"hidden_size": width, "intermediate_size": width, "num_local_experts": 4, "head_dim": 8}
    return _seeded("GptOssForCausalLM", "GptOssConfig", layer_types=["full_attention"] * 2, **sizes)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def reference_logits(folder: Path, base: Callable[[], nn.Module]) -> Tensor:
    peft = pytest.importorskip("peft", reason="peft is not installed (pip install peft==0.21.2)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return logits(peft.PeftModel.from_pretrained(base(), str(folder)).eval())


def loaded(folder: Path, model: nn.Module) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapters.load(model, folder)
    return [str(item.message) for item in caught if issubclass(item.category, AdapterWarning)]


# -- adapters of single experts --------------------------------------------------------------------------------------


class Former:
    """An adapter folder as transformers 4 had it, and the same change made by hand in the fused weights."""

    def __init__(self, base: Callable[[], Any], names: Sequence[str], block: str) -> None:
        self.base, self.names, self.block = base, names, block
        self.model = base()
        self.tensors: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(5)

    def pair(self, path: str, weight: Tensor, scale: float, r: int = 4) -> None:
        """A pair for the module at `path`, and its product added to `weight`."""
        lora_a = torch.empty(r, weight.shape[1]).normal_(0.0, 0.3, generator=self.generator)
        lora_b = torch.empty(weight.shape[0], r).normal_(0.0, 0.3, generator=self.generator)
        self.tensors |= {f"{PREFIX}{path}.lora_A.weight": lora_a, f"{PREFIX}{path}.lora_B.weight": lora_b}
        with torch.no_grad():
            weight.add_(scale * (lora_b @ lora_a))

    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        """Former path and present place of each matrix of each expert."""
        for number, layer in enumerate(self.model.model.layers):
            experts = getattr(layer.mlp, "experts", None)
            for expert in range(4) if experts is not None else ():
                for name in self.names:
                    down, half = name in ("w2", "down_proj"), len(experts.gate_up_proj[0]) // 2
                    gate = experts.gate_up_proj.data[expert]
                    place = gate[:half] if name in ("w1", "gate_proj") else gate[half:]
                    place = experts.down_proj.data[expert] if down else place
                    yield f"model.layers.{number}.{self.block}.experts.{expert}.{name}", place

    def write(self, folder: Path, **fields: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, folder / TENSORS_NAME, {"format": "pt"})
        document = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, **fields}
        (folder / CONFIG_NAME).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("base", "names", "block", "fields"),
    [
        (mixtral, ["w1", "w2", "w3"], "block_sparse_moe", {"target_modules": ["q_proj", "w1", "w2", "w3"]}),
        (mixtral, ["w1", "w2", "w3"], "block_sparse_moe", {"target_modules": r".*\.(q_proj|w1|w2|w3)"}),
        (mixtral, ["w2"], "block_sparse_moe", {"target_modules": ["q_proj", "w2"]}),
        (qwen3, PROJECTIONS, "mlp", {"target_modules": ["q_proj", *PROJECTIONS]}),
        (glm, PROJECTIONS, "mlp", {"target_modules": ["q_proj", *PROJECTIONS]}),
    ],
    ids=["mixtral", "mixtral by a pattern", "down alone", "qwen3", "glm"],
)  # fmt: skip
def test_adapters_of_single_experts(
    base: Callable[[], Any], names: Sequence[str], block: str, fields: Mapping[str, Any], tmp_path: Path
) -> None:
    former = Former(base, names, block)
    for number, layer in enumerate(former.model.model.layers):
        former.pair(f"model.layers.{number}.self_attn.q_proj", layer.self_attn.q_proj.weight, 2.0)
    for path, place in former.matrices():
        former.pair(path, place, 2.0)
    former.write(tmp_path, **fields)
    model = base()
    assert any("put together" in text for text in loaded(tmp_path, model))
    found = logits(model)
    assert float((found - logits(former.model)).abs().max()) < 1e-5
    assert float((found - logits(base())).abs().max()) > 0.05
    assert float((reference_logits(tmp_path, base) - found).abs().max()) < 1e-5


def test_what_the_reference_reads_wrongly_or_not_at_all(tmp_path: Path) -> None:
    """One matrix of two, other ranks and scales by name, scaled by the root, dropout, a router, dense layers beside."""
    former = Former(mixtral, ["w1"], "block_sparse_moe")
    for path, place in former.matrices():
        former.pair(path, place, 6 / math.sqrt(2), r=2)
    former.names = ["w3"]
    for path, place in former.matrices():
        former.pair(path, place, 8 / math.sqrt(4))
    for number, layer in enumerate(former.model.model.layers):
        former.pair(f"model.layers.{number}.block_sparse_moe.gate", layer.mlp.gate.weight, 8 / math.sqrt(4))
    patterns = {"rank_pattern": {"w1": 2}, "alpha_pattern": {"w1": 6}}
    former.write(tmp_path / "one", target_modules=["w1", "w3", "gate"], use_rslora=True, lora_dropout=0.1, **patterns)
    model = mixtral()
    loaded(tmp_path / "one", model)
    found = logits(model)
    assert float((found - logits(former.model)).abs().max()) < 1e-5
    adapters.save(model, tmp_path / "two")
    again = mixtral()
    assert loaded(tmp_path / "two", again) == []
    assert torch.equal(logits(again), found)
    assert float((reference_logits(tmp_path / "two", mixtral) - found).abs().max()) < 1e-5
    adapters.merge(again)
    assert float((logits(again) - found).abs().max()) < 1e-5


def test_dense_layers_beside_experts_are_not_lost(tmp_path: Path) -> None:
    former = Former(glm, PROJECTIONS, "mlp")
    for path, place in former.matrices():
        former.pair(path, place, 2.0)
    for path, module in former.model.named_modules():
        if isinstance(module, nn.Linear) and path.rsplit(".", 1)[-1] in former.names:
            former.pair(path, module.weight, 2.0)
    former.write(tmp_path, target_modules=former.names)
    model = glm()
    assert any("Hugging Face PEFT leaves them out" in text for text in loaded(tmp_path, model))
    assert float((logits(model) - logits(former.model)).abs().max()) < 1e-5


@pytest.mark.parametrize("fault", ["shape", "half", "expert", "dora"])
def test_single_experts_that_do_not_fit(fault: str, tmp_path: Path) -> None:
    former = Former(mixtral, ["w1", "w3"], "block_sparse_moe")
    for path, place in former.matrices():
        former.pair(path, place, 2.0)
    key = f"{PREFIX}model.layers.0.block_sparse_moe.experts.1.w1.lora_A.weight"
    if fault == "shape":
        former.tensors[key] = torch.zeros(4, 33)
    elif fault == "half":
        del former.tensors[key]
    elif fault == "expert":
        former.tensors = {name.replace("experts.1", "experts.9"): value for name, value in former.tensors.items()}
    former.write(tmp_path, target_modules=["w1", "w3"], use_dora=fault == "dora")
    with pytest.raises(AdapterError):
        adapters.load(mixtral(), tmp_path)


# -- fused experts ---------------------------------------------------------------------------------------------------


def trained(model: nn.Module, section: Mapping[str, Any]) -> Tensor:
    adapters.attach(model, {"type": "lora", "r": 4, "lora_alpha": 8, **section})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_of(model).trainable_parameters().values():
            parameter.add_(torch.empty(parameter.shape).normal_(0.0, 0.1, generator=generator))
    return logits(model)


@pytest.mark.parametrize("width", [32, 48], ids=["square", "wider"])
@pytest.mark.parametrize(
    "names", [["experts.down_proj"], ["experts.gate_up_proj", "experts.down_proj"]], ids=["one", "both"]
)
def test_transposed_experts(width: int, names: list[str], tmp_path: Path) -> None:
    model = gpt_oss(width)
    expected = trained(model, {"target_modules": ["q_proj"], "target_parameters": names})
    adapters.save(model, tmp_path)
    tensors, right = load_file(tmp_path / TENSORS_NAME), gpt_oss(width)
    for number, layer in enumerate(right.model.layers):
        key = f"{PREFIX}model.layers.{number}."
        changed = {f"{key}mlp.experts": layer.mlp.experts.down_proj}
        if len(names) > 1:
            changed[f"{key}mlp.experts.base_layer"] = layer.mlp.experts.gate_up_proj
        with torch.no_grad():
            for path, weight in changed.items():
                lora_a = tensors[f"{path}.lora_A.weight"].view(4, 4, -1)  # (E, r, in)
                lora_b = tensors[f"{path}.lora_B.weight"].view(-1, 4, 4)  # (out, r, E)
                weight.add_(2.0 * torch.einsum("ore,eri->eio", lora_b, lora_a))  # (E, in, out)
            lora_a, lora_b = (tensors[f"{key}self_attn.q_proj.lora_{half}.weight"] for half in "AB")
            layer.self_attn.q_proj.weight.add_(2.0 * lora_b @ lora_a)
    assert float((logits(right) - expected).abs().max()) < 1e-5
    again = gpt_oss(width)
    assert loaded(tmp_path, again) == []
    assert torch.equal(logits(again), expected)
    adapters.merge(again)
    assert float((logits(again) - expected).abs().max()) < 1e-5
    assert float((reference_logits(tmp_path, lambda: gpt_oss(width)) - expected).abs().max()) < 1e-5


MLP = ["o_proj", "gate_proj", "up_proj", "down_proj"]
WRITTEN: Mapping[str, tuple[Callable[[], Any], Mapping[str, Any]]] = {
    "deepseek": (deepseek, {"target_modules": MLP}),
    "deepseek, all-linear": (deepseek, {"target_modules": "all-linear"}),
    "deepseek, one name": (deepseek, {"target_modules": ["gate_proj"], "lora_dropout": 0.1}),
    "deepseek, patterns": (
        deepseek,
        {"target_modules": MLP, "rank_pattern": {"up_proj": 2}, "alpha_pattern": {"shared_experts.up_proj": 5}},
    ),
    "deepseek, by a pattern": (deepseek, {"target_modules": r".*(o_proj|shared_experts\.up_proj)", "use_rslora": True}),
    "deepseek, shifted start": (deepseek, {"target_modules": MLP, "init_lora_weights": "pissa"}),
    "deepseek, experts too": (
        deepseek,
        {"target_modules": MLP, "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "glm, one layer": (glm, {"target_modules": MLP, "layers_to_transform": [1]}),
    "qwen2": (qwen2, {"target_modules": MLP}),
    "mixtral": (mixtral, {"target_modules": "all-linear"}),
}


@pytest.mark.parametrize("name", list(WRITTEN))
def test_the_reference_reads_dense_layers_beside_experts(name: str, tmp_path: Path) -> None:
    base, section = WRITTEN[name]
    model = base()
    expected = trained(model, section)
    adapters.save(model, tmp_path)
    again = base()
    assert loaded(tmp_path, again) == []
    assert float((logits(again) - expected).abs().max()) < 1e-5
    adapters.save(again, tmp_path / "again")
    assert (tmp_path / "again" / CONFIG_NAME).read_bytes() == (tmp_path / CONFIG_NAME).read_bytes()
    assert float((reference_logits(tmp_path, base) - expected).abs().max()) < 1e-5


def test_what_no_file_can_say_is_told(tmp_path: Path) -> None:
    model = deepseek()
    trained(model, {"target_modules": ["gate_proj"], "use_dora": True})
    with pytest.warns(AdapterWarning, match="takes `model.layers.0.mlp.gate_proj`.*without use_dora"):
        adapters.save(model, tmp_path)


def test_one_weight_of_a_layer_is_the_layer(tmp_path: Path) -> None:
    named_by_weight, named_by_layer = qwen3(), qwen3()
    by_weight = {"target_parameters": ["q_proj.weight"], "rank_pattern": {"q_proj.weight": 2}}
    expected = trained(named_by_weight, {"target_modules": ["k_proj"], **by_weight})
    by_layer = {"target_modules": ["k_proj", "q_proj"], "rank_pattern": {"q_proj": 2}}
    assert torch.equal(expected, trained(named_by_layer, by_layer))
    adapters.save(named_by_weight, tmp_path)
    document = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert (document["target_modules"], document["target_parameters"]) == (["k_proj"], ["q_proj.weight"])
    assert float((reference_logits(tmp_path, qwen3) - expected).abs().max()) < 1e-6


@pytest.mark.parametrize("base", [mixtral, qwen3, lambda: gpt_oss(32)], ids=["mixtral", "qwen3", "gpt-oss"])
def test_all_linear_reaches_the_experts_and_no_router(base: Callable[[], Any], tmp_path: Path) -> None:
    model = base()
    names = {name for name, parameter in model.named_parameters() if parameter.dim() == 3}
    expected = trained(model, {})
    found = set(adapter_of(model).targets())
    assert names <= found
    assert not any(path.endswith(("gate", "router", "gate.weight", "router.weight")) for path in found)
    assert {why for path, why in adapter_of(model).left_out.items()} == {"that route tokens to experts"}
    adapters.save(model, tmp_path)
    again = base()
    assert loaded(tmp_path, again) == []
    assert torch.equal(logits(again), expected)
    adapters.merge(again)
    assert float((logits(again) - expected).abs().max()) < 1e-5
    assert float((reference_logits(tmp_path, base) - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("field", [{"lora_dropout": 0.1}, {"use_dora": True}], ids=str)
def test_all_linear_says_why_it_leaves_the_experts_out(field: dict[str, Any]) -> None:
    found = adapters.attach(mixtral(), {"type": "lora", "r": 4, **field})
    assert any("4 layers of fused experts, which take neither" in note for note in found.notes), found.notes
    assert not any("experts" in path for path in found.targets)


# -- what the update of an expert costs --------------------------------------------------------------------------------

EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}


def answer_and_gradients(base: Callable[[], Any], way: str) -> tuple[Tensor, dict[str, Tensor]]:
    model = base()
    model.config._experts_implementation = way
    trained(model, EXPERTS)
    output = model(input_ids=IDS, labels=IDS)
    output.loss.backward()
    parameters = adapter_of(model).trainable_parameters()
    return output.logits.detach(), {name: p.grad for name, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("way", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("base", [mixtral, lambda: gpt_oss(32)], ids=["mixtral", "gpt-oss"])
def test_updates_kept_apart_are_those_of_the_sum(
    base: Callable[[], Any], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums: list[Tensor] = []
    dense = RoutedWeight.dense
    monkeypatch.setattr(RoutedWeight, "dense", lambda self: sums.append(dense(self)) or sums[-1])
    apart, gradients = answer_and_gradients(base, way)
    # matrices that were picked token by token are as many as the tokens that are routed
    assert not sums or (way == "batched_mm" and {len(found) for found in sums} == {2 * IDS.numel()})
    monkeypatch.setattr(LoraParameter, "_routed", lambda self, weight: (weight + self.delta()).to(weight.dtype))
    summed, expected = answer_and_gradients(base, way)
    assert float((apart - summed).abs().max()) < 1e-5
    assert gradients.keys() == expected.keys()
    assert all(torch.allclose(gradients[name], expected[name], rtol=1e-3, atol=1e-6) for name in expected)


def test_the_cost_of_an_update_hangs_on_the_tokens_and_not_on_the_experts() -> None:
    def flops(experts: int, section: Mapping[str, Any]) -> int:
        model = _seeded("MixtralForCausalLM", "MixtralConfig", num_local_experts=experts)
        model.config._experts_implementation = "eager"
        adapters.attach(model, {"type": "lora", "r": 4, **section})
        with FlopCounterMode(display=False) as counter:
            model(input_ids=IDS, labels=IDS).loss.backward()
        return int(counter.get_total_flops())

    few, many = (flops(experts, EXPERTS) - flops(experts, {"target_modules": ["q_proj"]}) for experts in (4, 16))
    assert few > 0
    assert few == many
