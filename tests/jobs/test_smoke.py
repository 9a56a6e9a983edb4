"""`peft train --smoke`: every stage on a tiny random model of the same architecture, quickly, leaving nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers

from peftcli.cli.entry import run as peft
from peftcli.errors import DataError
from peftcli.jobs.smoke import _names_layers, smoke_text, smoke_train
from peftcli.models.builtin import builtin_base
from peftcli.models.tiny_base import shrink
from peftcli.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
BASES = Path(__file__).parents[1] / "recipes" / "bases"
STAGES = ["tiny base", "data", "attach", "train", "evaluate", "save", "reload", "merge"]


def test_every_stage_passes_and_nothing_is_left(
    work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(path.name for path in (*tmp_path.iterdir(), *work.iterdir()))
    assert peft(["train", "tiny.yaml", "--smoke", "--json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["passed"] == STAGES
    assert document["seconds"] < 60
    assert [line.split("  ")[1].strip() for line in printed.err.splitlines() if line.startswith("ok")] == STAGES
    assert sorted(path.name for path in (*tmp_path.iterdir(), *work.iterdir())) == before


def test_the_weights_of_the_base_are_not_needed(work: Path) -> None:
    (work / "base" / "model.safetensors").unlink()
    assert [stage.name for stage in smoke_train("tiny.yaml").stages] == STAGES


@pytest.mark.parametrize("method", ["bottleneck", "prompt_tuning"])
def test_a_method_that_does_not_merge_passes_and_says_so(method: str, work: Path) -> None:
    report = smoke_train("tiny.yaml", [f"method.type={method}"])
    assert "refused" in report.stages[-1].note
    assert "every stage passed" in smoke_text(report)


def test_a_stage_that_fails_raises_its_own_error(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "rows.jsonl").write_text('{"messages": 3}\n')
    with pytest.raises(DataError):
        smoke_train("tiny.yaml")
    assert peft(["train", "tiny.yaml", "--smoke"]) == 3
    printed = capsys.readouterr().err
    assert "ok  tiny base" in printed
    assert "ok  train" not in printed


@pytest.mark.parametrize("flag", [["--output", "x"], ["--replace"], ["--locked"]])
def test_smoke_keeps_nothing_so_it_takes_no_place(flag: list[str], work: Path) -> None:
    assert peft(["train", "tiny.yaml", "--smoke", *flag]) == 2


FULL = ["smollm2-135m", "qwen3-0.6b", "llama-3.2-1b", "mistral-7b"]


def base_with(name: str, folder: Path, tokenizer: Iterable[Path]) -> Path:
    """A published configuration beside the files of a tokenizer."""
    base = folder / name
    shutil.copytree(BASES / name, base)
    for part in tokenizer:
        shutil.copy(part, base)
    return base


def require_full_recipe_passes(name: str, base: Path, **overrides: Any) -> None:
    """Every stage within a minute of computing, from the published recipe on `base`."""
    changes = {"model.base": str(base), "model.revision": None, "data.train": "builtin:support", **overrides}
    started = time.process_time()
    report = smoke_train(RECIPES / name / "lora.yaml", changes)
    assert [stage.name for stage in report.stages] == STAGES
    assert time.process_time() - started < 60, "of this process, so that other workers do not count"


@pytest.mark.parametrize("name", [FULL[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FULL[1:])])
def test_full_recipes_pass_on_their_published_configuration(name: str, tmp_path: Path) -> None:
    base = base_with(name, tmp_path, builtin_base("tiny").glob("tokenizer*"))
    require_full_recipe_passes(name, base)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_recipes_pass_with_their_own_tokenizer_where_it_is_in_the_local_cache(name: str, tmp_path: Path) -> None:
    repository = load_recipe(RECIPES / name / "lora.yaml").recipe.model.base
    found = huggingface_hub.try_to_load_from_cache(repository, "tokenizer.json")
    if not isinstance(found, str):
        pytest.skip(f"the tokenizer of {repository} is not in the local cache")
    base = base_with(name, tmp_path, Path(found).parent.glob("*token*"))
    require_full_recipe_passes(name, base)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_recipes_pass_with_a_tokenizer_of_the_ground(name: str, tmp_path: Path, ground: Path) -> None:
    """A published byte-level tokenizer without chat template, on plain text: the other half of what bases look like."""
    base = base_with(name, tmp_path, (ground / "models" / "bpe8k").glob("tokenizer*"))
    rows = str(ground / "data" / "tales" / "train.jsonl")
    # a text has no answer to match
    require_full_recipe_passes(name, base, **{"data.train": rows, "evaluation.metrics": ["loss"]})


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((RECIPES / "tiny").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_tiny_recipe_passes(path: Path) -> None:
    assert [stage.name for stage in smoke_train(path).stages] == STAGES


# -- the tiny base -----------------------------------------------------------------------------------------------

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "mistral": {"head_dim": 128, "num_key_value_heads": 8},
    "qwen3": {"head_dim": 128, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "qwen3_moe": {"num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    "mixtral": {"num_local_experts": 8},
    "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256},
    "gemma3_text": {},
    "phi3": {"num_key_value_heads": 32, "pad_token_id": 0},
    "gpt2": {},
    "opt": {},
    "gpt_neox": {},
    "falcon": {},
    "bloom": {},
    "starcoder2": {},
    "olmo2": {},
    "cohere": {},
}


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_shrinks_to_a_model_that_runs(family: str) -> None:
    config = transformers.AutoConfig.for_model(family, **CONFIGS[family])
    vocabulary = config.vocab_size
    small = shrink(config)
    model = transformers.AutoModelForCausalLM.from_config(small)
    assert small.model_type == config.model_type
    assert small.vocab_size == vocabulary
    layers = sum(parameter.numel() for parameter in model.parameters()) - vocabulary * 128 * 2
    assert layers < 2_000_000
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    assert logits.shape == (1, 16, vocabulary)
    assert torch.isfinite(logits).all()


def test_layers_stay_where_a_method_names_them(work: Path) -> None:
    def names(*overrides: str) -> bool:
        return _names_layers(load_recipe("tiny.yaml", overrides).recipe)

    assert not names()
    assert not names("method.target_modules=[q_proj, v_proj]")
    assert names("method.layers_to_transform=[3]")
    assert names("method.target_modules=model\\.layers\\.3\\.mlp\\.up_proj")
