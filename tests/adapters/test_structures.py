"""Methods on structures that are not Llama's: they work, or the plan says why not before a weight is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from peftcli import adapters
from peftcli.adapters.prompt_sites import learned_positions
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError
from peftcli.models.structure import structure
from peftcli.models.sublayers import stream_norms
from peftcli.planning.plan import make_plan
from peftcli.recipe import load_recipe
from tests.adapters.test_left_out import SIZES, bart, gemma_with_eyes, logits_of

MIXER: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 16}


def mamba2() -> nn.Module:
    config = transformers.Mamba2Config(**MIXER, num_heads=4, state_size=8, n_groups=1, use_conv_bias=True)
    return transformers.Mamba2ForCausalLM(config)


def gpt_oss() -> nn.Module:
    config = transformers.GptOssConfig(
        **SIZES, num_local_experts=4, num_experts_per_tok=2, layer_types=["sliding_attention", "full_attention"]
    )
    return transformers.GptOssForCausalLM(config)


def olmo2() -> nn.Module:
    return transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**{**SIZES, "num_key_value_heads": 4}))


def rwkv() -> nn.Module:
    config = transformers.RwkvConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)
    return transformers.RwkvForCausalLM(config)


WORK: list[tuple[str, Callable[[], nn.Module]]] = [
    ("bitfit", mamba2),
    ("bitfit", bart),
    ("bottleneck", mamba2),
    ("bottleneck", gemma_with_eyes),
    ("adaption_prompt", gpt_oss),
    ("adaption_prompt", olmo2),
    ("ln_tuning", gemma_with_eyes),
    ("full", gemma_with_eyes),
    ("freeze", gemma_with_eyes),
    ("prompt_tuning", gemma_with_eyes),
]


@pytest.mark.parametrize(("method", "make"), WORK, ids=[f"{method}-{make.__name__}" for method, make in WORK])
def test_a_method_trains_and_writes(method: str, make: Callable[[], nn.Module]) -> None:
    """Every trained tensor gets a gradient within two steps, and writing with a cache answers as without."""
    torch.manual_seed(0)
    model = make()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, 0.0, 0.1)
    adapters.attach(model, method)
    ids = torch.randint(3, 90, (2, 9))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), 0.1)
    idle = set(trained)
    for _ in range(2):
        logits = logits_of(model, ids)
        nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        idle -= {name for name, p in trained.items() if p.grad is not None and p.grad.any()}
        optimizer.step()
        optimizer.zero_grad()
    assert not idle
    model.eval()
    found = model.generate(  # type: ignore[operator]
        input_ids=ids[:1], attention_mask=torch.ones(1, 9, dtype=torch.int64), max_new_tokens=4, min_new_tokens=4,
        do_sample=False, return_dict_in_generate=True, output_logits=True, pad_token_id=0,
    )  # fmt: skip
    whole = model(input_ids=found.sequences[:, :-1], use_cache=False).logits[0, 8:]
    assert torch.allclose(torch.cat(found.logits), whole, atol=1e-4)


def test_a_norm_inside_a_mixer_is_none_of_the_stream_s() -> None:
    assert list(stream_norms(mamba2())) == ["backbone.layers.0.norm", "backbone.layers.1.norm", "backbone.norm_f"]


def test_the_text_part_is_what_counts() -> None:
    """Blocks, biases and positions of the vision tower are not taken for the text's."""
    model = gemma_with_eyes()
    found = structure(model)
    assert found.num_layers == 2
    assert all("language_model" in path for path in found.blocks)
    assert all("vision_tower" in path for path in found.towers)
    assert learned_positions(model) is None
    with pytest.raises(AdapterError, match="not called for text"):
        adapters.attach(model, "bitfit")


def test_idle_biases_are_told_and_a_file_of_them_is_read(tmp_path: Path) -> None:
    model = bart().eval()
    summary = adapters.attach(model, "bitfit")
    assert any("encoder_attn" in note for note in summary.notes)
    adapters.save(model, tmp_path / "adapter")
    targets = adapter_of(model).targets()
    adapters.detach(model)
    adapters.load(model, tmp_path / "adapter")
    assert adapter_of(model).targets() == targets


def test_the_plan_says_what_does_not_run(tmp_path: Path) -> None:
    """RWKV divides some of its weights in place when it stops training: wrapped layers would not take part."""
    rwkv().save_pretrained(tmp_path / "base")
    own = Path(__file__).parents[2] / "peftcli" / "models" / "builtin" / "tiny"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / name).write_bytes((own / name).read_bytes())
    (tmp_path / "rows.jsonl").write_text('{"text": "one two three"}\n' * 8)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: ./base\ndata: rows.jsonl\nmethod: bottleneck\n")
    with pytest.raises(AdapterError, match="bottleneck does not run on RwkvForCausalLM"):
        make_plan(load_recipe(recipe, ()))
