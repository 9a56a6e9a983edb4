"""Virtual tokens take positions: the plan and generation count them, so that no run finds out in its first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from peftcli import adapters
from peftcli.errors import AdapterError, DataError, RecipeError
from peftcli.evaluation.config import GenerationConfig
from peftcli.evaluation.generate import check_fits, fits
from peftcli.planning.plan import make_plan
from peftcli.recipe import load_recipe
from peftcli.testing import tiny_model

PROMPTS: dict[str, dict[str, Any]] = {
    "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 20, "prompt_tuning_init": "RANDOM"},
    "p_tuning": {"type": "p_tuning", "num_virtual_tokens": 20, "encoder_hidden_size": 8},
    "prefix_tuning": {"type": "prefix_tuning", "num_virtual_tokens": 20},
}


def base_folder(family: str, folder: Path) -> Path:
    model: Any = tiny_model(family)
    model.save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{index}": index for index in range(4, 64)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def plan(family: str, method: dict[str, Any], length: int, folder: Path) -> Any:
    base_folder(family, folder / "base")
    words = " ".join(f"w{4 + index % 60}" for index in range(600))
    (folder / "rows.txt").write_text(words)
    fields = "".join(f"  {key}: {value}\n" for key, value in method.items())
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: ./base\ndata: {{train: rows.txt, format: text, max_length: {length}}}\nmethod:\n{fields}"
        "training: {max_steps: 1, batch_size: 1}\n"
    )
    return make_plan(load_recipe(recipe, ()))


@pytest.mark.parametrize("family", ["gpt2", "opt"])
@pytest.mark.parametrize("method", PROMPTS)
def test_the_plan_counts_virtual_tokens_among_learned_positions(method: str, family: str, tmp_path: Path) -> None:
    assert plan(family, PROMPTS[method], 108, tmp_path / "fits")
    with pytest.raises(RecipeError, match="109 tokens: these and 20 virtual tokens need more than the base's 128") as e:
        plan(family, PROMPTS[method], 109, tmp_path / "beyond")
    assert e.value.fix == "data.max_length: 108"


def test_rows_beyond_learned_positions_are_refused_without_a_prompt(tmp_path: Path) -> None:
    assert plan("gpt2", {"type": "lora", "r": 2}, 128, tmp_path / "fits")
    with pytest.raises(RecipeError, match="128 positions"):
        plan("gpt2", {"type": "lora", "r": 2}, 129, tmp_path / "beyond")


def test_rotary_positions_only_warn(tmp_path: Path) -> None:
    assert not [
        line for line in plan("llama", PROMPTS["p_tuning"], 108, tmp_path / "fits").warnings if "context" in line
    ]
    (warning,) = [
        line for line in plan("llama", PROMPTS["p_tuning"], 109, tmp_path / "beyond").warnings if "context" in line
    ]
    assert warning == "data.max_length 109 and 20 virtual tokens exceed the base's context of 128"


@pytest.mark.parametrize("method", PROMPTS)
def test_generation_counts_them_too(method: str) -> None:
    model: nn.Module = tiny_model("gpt2")
    config = GenerationConfig(max_new_tokens=8)
    longest = [5] * 120
    check_fits(model, [longest], config=config)
    adapters.attach(model, PROMPTS[method])
    with pytest.raises(DataError, match="120 prompt tokens, 8 new and 20 virtual tokens exceed the context"):
        check_fits(model, [longest], config=config)
    assert not fits(model, longest, config)
    assert fits(model, longest[20:], config)
    with torch.no_grad():
        ids = torch.tensor([longest[20:]])
        settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        assert model.generate(input_ids=ids, **settings).shape[1] == 108  # type: ignore[operator]
    with adapters.disabled(model):
        check_fits(model, [longest], config=config)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("jamba", "JambaModel keeps something else, such as a state, in layer 0"),
        ("lfm2", "Lfm2Model keeps something else, such as a state, in layer 0"),
        ("mamba", "needs attention in every layer, and this model has none"),
        ("rwkv", "RwkvModel takes none"),
        ("deepseek", r"layer 0 keeps keys of \[\d+, \d+\] and values of \[\d+, \d+\]"),
    ],
)
def test_a_prefix_that_layers_cannot_take_is_refused_before_weights_are_loaded(
    family: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=reason) as error:
        plan(family, PROMPTS["prefix_tuning"], 50, tmp_path)
    assert "use prompt_tuning or lora" in str(error.value.fix)
    with pytest.raises(AdapterError, match=reason):
        adapters.attach(tiny_model(family), PROMPTS["prefix_tuning"])


def test_a_base_that_turns_its_rows_round_is_refused() -> None:
    """XLNet embeds (length, batch): the prompt would be read as rows of the batch."""
    sizes = {"vocab_size": 64, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}
    model = transformers.XLNetLMHeadModel(transformers.XLNetConfig(**sizes)).eval()
    adapters.attach(model, {"type": "prompt_tuning", "num_virtual_tokens": 3})
    with pytest.raises(AdapterError, match=r"asked for \[7, 5\], a prompt needs \(batch, length\)"):
        model(input_ids=torch.arange(20).view(5, 4))
