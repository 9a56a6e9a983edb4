"""The model around an adapter: compiled, wrapped, and methods that would act on the wrappers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from peftcli import adapters
from peftcli.adapters.documents import TENSORS_NAME
from peftcli.adapters.surgery import adapter_of, attached
from peftcli.errors import AdapterError

IDS = torch.arange(1, 13).view(1, 12)


def tied() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=True)).eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def perturbed(model: nn.Module, section: Mapping[str, Any]) -> Tensor:
    adapters.attach(model, section)
    with torch.no_grad():
        for parameter in adapter_of(model).trainable_parameters().values():
            parameter.add_(0.02)
    return logits(model)


def test_a_compiled_model_is_the_model(tmp_path: Path) -> None:
    model = tied()
    compiled: Any = torch.compile(model, backend="eager")
    before = logits(compiled)
    expected = perturbed(compiled, {"type": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]})
    assert not torch.equal(expected, before)
    assert torch.equal(logits(model), expected)
    with adapters.disabled(compiled):
        assert torch.equal(logits(compiled), before)
    adapters.save(compiled, tmp_path)
    assert all(key.startswith("base_model.model.model.layers.") for key in load_file(tmp_path / TENSORS_NAME))
    plain = tied()
    adapters.load(plain, tmp_path)
    assert torch.equal(logits(plain), expected)
    adapters.detach(compiled)
    assert attached(model) is None
    assert torch.equal(logits(compiled), before)
    adapters.load(compiled, tmp_path)
    adapters.merge(compiled)
    assert float((logits(compiled) - expected).abs().max()) < 1e-5


def with_compiled_block() -> nn.Module:
    model = tied()
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("wrapped", [with_compiled_block, lambda: nn.DataParallel(tied())], ids=["block", "parallel"])
def test_wrapped_parts_are_refused(wrapped: Callable[[], nn.Module]) -> None:
    model = wrapped()
    with pytest.raises(AdapterError, match="an adapter goes on the model itself"):
        adapters.attach(model, "lora")
    assert attached(model) is None


SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "head": {"type": "lora", "r": 4, "target_modules": ["lm_head"]},
    "both as one": {"type": "lora", "r": 4, "target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "head whole": {"type": "lora", "r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "tokens": {"type": "lora", "r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [1, 5]},
    "everything": {"type": "full"},
}


@pytest.mark.parametrize("name", list(SECTIONS))
def test_tying_again_changes_nothing(name: str) -> None:
    model = tied()
    before = logits(model)
    expected = perturbed(model, SECTIONS[name])
    model.tie_weights()
    assert torch.equal(logits(model), expected)
    adapters.detach(model)
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    "section", [SECTIONS["head"], {"type": "prompt_tuning", "num_virtual_tokens": 3}], ids=["layers", "prompt"]
)
def test_the_model_is_not_saved_with_wrappers_in_it(section: Mapping[str, Any], tmp_path: Path) -> None:
    model = tied()
    names = set(model.__dict__)
    adapters.attach(model, section)
    for refused in (lambda: model.save_pretrained(tmp_path), lambda: model.resize_token_embeddings(70)):
        with pytest.raises(AdapterError, match="does not go with an adapter"):
            refused()
    assert not list(tmp_path.iterdir())
    adapters.detach(model)
    assert set(model.__dict__) == names
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path).eval()), logits(tied()))
