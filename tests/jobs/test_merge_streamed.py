"""A merge of a model that stays in its files writes what a merge in memory writes, and is proven as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_case import LORA, family, llama, rewrite, tensors_of, types_of, write_adapter, write_base
from safetensors.torch import save_file
from torch import Tensor, nn

from peftcli.adapters.layers_method import LayersAdapter
from peftcli.adapters.methods.lora.experts import LoraParameter
from peftcli.adapters.methods.lora.linear import LoraLinear
from peftcli.errors import CheckFailed
from peftcli.jobs import merge as merge_job
from peftcli.jobs import merge_streamed
from peftcli.jobs.merge import merge_adapter
from peftcli.models import streamed, streaming

EXPERTS: dict[str, Any] = {
    "type": "lora", "r": 2, "target_modules": ["q_proj"],
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}  # fmt: skip
TOKENS: dict[str, Any] = {"type": "lora", "r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [259, 7]}
HEAD: dict[str, Any] = {"type": "lora", "r": 4, "target_modules": ["q_proj", "lm_head"]}
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def _in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every base counts as a large one, and every matrix as one that is read in pieces."""
    monkeypatch.setattr(merge_job, "HELD_WHOLE", 0)
    monkeypatch.setattr(streaming, "SMALL", 64)
    monkeypatch.setattr(merge_streamed, "SMALL", 64)
    monkeypatch.setattr(streamed, "PIECE", 4096)


def merge_in_files(adapter: Path, output: Path, **options: Any) -> Any:
    said: list[str] = []
    found = merge_adapter(adapter, output=output, say=said.append, **options)
    assert not [line for line in said if "held whole" in line], said
    return found


CASES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "half precision": (lambda: llama(torch.bfloat16), LORA),
    "DoRA": (llama, {**LORA, "use_dora": True}),
    "trained tokens": (llama, TOKENS),
    "tied head": (lambda: llama(tie_word_embeddings=True), HEAD),
    "experts": (lambda: family("mixtral"), EXPERTS),
    "transposed layers": (lambda: family("gpt2"), LORA),
    "biases": (lambda: family("gpt2"), "bitfit"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_folder_is_that_of_a_merge_in_memory(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, section = CASES[case]
    adapter = write_adapter(tmp_path / "a", write_base(tmp_path / "b", model()), section)
    found = merge_in_files(adapter, tmp_path / "files")
    monkeypatch.setattr(merge_job, "HELD_WHOLE", 1 << 40)
    whole = merge_adapter(adapter, output=tmp_path / "whole")
    ours, theirs = tensors_of(tmp_path / "files"), tensors_of(tmp_path / "whole")
    assert {name: tensor.dtype for name, tensor in ours.items()} == {name: t.dtype for name, t in theirs.items()}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (tmp_path / "files/config.json").read_bytes() == (tmp_path / "whole/config.json").read_bytes()
    assert (found.weights, found.untied, found.worst_weight) == (whole.weights, whole.untied, whole.worst_weight)
    assert found.update_share == pytest.approx(whole.update_share, abs=1e-6)
    assert found.logits_share == pytest.approx(1.0, abs=0.02)


def test_another_type(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", write_base(tmp_path / "b", llama()), LORA)
    found = merge_in_files(adapter, tmp_path / "m", dtype="bfloat16")
    assert set(types_of(tmp_path / "m").values()) == {"BF16"}
    assert json.loads((tmp_path / "m/config.json").read_text())["dtype"] == "bfloat16"
    assert found.max_difference <= found.tolerance


def test_several_files(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", write_base(tmp_path / "b", llama()), LORA)
    merge_in_files(adapter, tmp_path / "m", max_shard_size="64KiB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    assert set(tensors_of(tmp_path / "m")) == set(tensors_of(tmp_path / "b"))


def test_a_base_that_cannot_be_read_in_parts_is_held_whole(tmp_path: Path) -> None:
    """The configuration ties two tables that differ in the files: which is meant is for transformers to say."""
    base = write_base(tmp_path / "b", llama(tie_word_embeddings=True))
    rewrite(base, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1.0}))
    adapter = write_adapter(tmp_path / "a", base, LORA)
    said: list[str] = []
    merge_adapter(adapter, output=tmp_path / "m", say=said.append)
    assert [line for line in said if "held whole" in line and "tied" in line]


# -- what is planted is caught ---------------------------------------------------------------------------------------


def require_caught(adapter: Path, output: Path, words: str) -> None:
    with pytest.raises(CheckFailed) as caught:
        merge_in_files(adapter, output)
    assert words in caught.value.render()
    assert not output.exists()
    assert [path for path in output.parent.iterdir() if path.name.startswith(".tmp")] == []


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    return write_adapter(folder / "a", write_base(folder / "b", llama()), LORA)


def test_a_layer_that_merges_another_update(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = LoraLinear.delta_weight
    monkeypatch.setattr(LoraLinear, "delta_weight", lambda self: honest(self) * 0.99)
    require_caught(plain, tmp_path / "m", "not what the adapter computes: model.layers.0.self_attn.q_proj")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weight: weight[5].mul_(1.001), "model.layers.1.mlp.up_proj (1 of its rows)"),
        (lambda weight: weight[7, 9].fill_(float("nan")), "model.layers.1.mlp.up_proj (1 of its rows)"),
        (lambda weight: weight.copy_(weight.roll(1, 0)), "not what the adapter computes"),
    ],
    ids=["one row", "one NaN", "another order"],
)
def test_a_wrong_weight_after_its_merge(
    change: Callable[[Tensor], Any], words: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = LayersAdapter._merge_stack

    def merge(self: LayersAdapter, wrappers: Any, replaced: Any) -> None:
        honest(self, wrappers, replaced)
        if wrappers[0][0] == "model.layers.1.mlp.up_proj":
            with torch.no_grad():
                change(wrappers[0][1].base_layer.weight)

    monkeypatch.setattr(LayersAdapter, "_merge_stack", merge)
    require_caught(plain, tmp_path / "m", words)


def test_one_expert_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = write_adapter(tmp_path / "a", write_base(tmp_path / "b", family("mixtral")), EXPERTS)
    honest = LoraParameter.merged

    def merged(self: LoraParameter) -> dict[str, Tensor]:
        found = honest(self)
        for value in found.values():
            value[2] -= self.delta().detach()[2]
        return found

    monkeypatch.setattr(LoraParameter, "merged", merged)
    require_caught(adapter, tmp_path / "m", "not what the adapter computes: model.layers.0.mlp.experts")


@pytest.mark.parametrize("name", [UP, "model.norm.weight", "lm_head.weight"])
def test_a_wrong_value_in_the_file(name: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = merge_streamed.write_streamed

    def write(staging: Any, *rest: Any) -> int:
        found = honest(staging, *rest)
        rewrite(staging.path, lambda tensors: tensors[name].reshape(-1)[3:4].add_(0.5))
        return found

    monkeypatch.setattr(merge_streamed, "write_streamed", write)
    require_caught(plain, tmp_path / "m", f"did not come back from the written folder as they were merged: {name}")


def test_another_configuration(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = merge_streamed.write_streamed

    def write(staging: Any, *rest: Any) -> int:
        found = honest(staging, *rest)
        config = staging.path / "config.json"
        config.write_text(config.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 20.0'))
        return found

    monkeypatch.setattr(merge_streamed, "write_streamed", write)
    require_caught(plain, tmp_path / "m", "drifted most")


# -- memory ------------------------------------------------------------------------------------------------------------

MEASURED = """
import resource, sys
import peftcli.jobs.merge, transformers.models.llama.modeling_llama
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = peftcli.jobs.merge.merge_adapter(sys.argv[1], output=sys.argv[2], max_shard_size="128MB")
assert report.max_difference <= report.tolerance
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_a_model_of_a_gibibyte_in_a_third_of_it(tmp_path: Path) -> None:
    """In eight files; what is asked for above the loaded process is a few matrices, whatever their number."""
    base = write_base(tmp_path / "b", llama(num_hidden_layers=1))
    config = json.loads((base / "config.json").read_text())
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "num_attention_heads": 16}
    (base / "config.json").write_text(json.dumps({**config, **sizes, "num_key_value_heads": 16, "head_dim": 64}))
    (base / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number in range(8):
        tensors = {name: tensor for layer in (2 * number, 2 * number + 1) for name, tensor in _layer(layer)}
        if number == 0:
            tensors |= {"model.embed_tokens.weight": torch.randn(264, 1024), "lm_head.weight": torch.randn(264, 1024)}
            tensors["model.norm.weight"] = torch.ones(1024)
        file = f"model-{number + 1:05d}-of-00008.safetensors"
        save_file(tensors, base / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    adapter = write_adapter(tmp_path / "a", base, LORA)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(adapter), str(tmp_path / "m")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < 1.07e9 / 3, done.stdout


def _layer(number: int) -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(number)
    prefix = f"model.layers.{number}"
    shapes = {f"self_attn.{name}_proj": (1024, 1024) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (4096, 1024), "mlp.up_proj": (4096, 1024), "mlp.down_proj": (1024, 4096)}
    matrices = [
        (f"{prefix}.{name}.weight", 0.02 * torch.randn(shape, generator=generator)) for name, shape in shapes.items()
    ]
    norms = [(f"{prefix}.{name}.weight", torch.ones(1024)) for name in ("input_layernorm", "post_attention_layernorm")]
    return [*matrices, *norms]
