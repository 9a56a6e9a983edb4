"""What LoRA adapts beside linear layers: tokens, experts, tied embeddings, saved modules, repeated blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peftcli import adapters
from peftcli.adapters.base import InitContext
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import AdapterError, ModelError, RecipeError
from peftcli.testing import tiny_model
from peftcli.testing.case import inputs_for


def llama(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "initializer_range": 0.1,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes)).eval()


def mixtral() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
        initializer_range=0.1,
    )
    return transformers.MixtralForCausalLM(config).eval()


IDS = torch.arange(4, 24).view(2, 10)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def loss_of(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=IDS, labels=IDS).loss
    return found


def disturbed(model: nn.Module, scale: float = 0.1) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_of(model).trainable_parameters().values():
            parameter.add_(torch.empty(parameter.shape).normal_(0.0, scale, generator=generator))
    return model


def attached(section: dict[str, Any], model: nn.Module | None = None, **context: Any) -> nn.Module:
    model = llama() if model is None else model
    given = InitContext(torch.Generator().manual_seed(0), **context)
    adapters.attach(model, {"type": "lora", "r": 4, "lora_alpha": 8, **section}, context=given)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_trained_tokens_move_only_their_rows(tied: bool) -> None:
    model = llama(tie_word_embeddings=tied)
    attached({"trainable_token_indices": [9, 5], "target_modules": ["q_proj"]}, model)
    with adapters.disabled(model):
        plain = logits(model)
    assert (logits(model) - plain).abs().max() < 1e-6
    disturbed(model, 0.5)
    embedding = model.get_input_embeddings()
    moved = (embedding(torch.arange(64)) - embedding.base_layer.weight).abs().sum(1).nonzero().flatten()
    assert moved.tolist() == [5, 9]
    tuned = logits(model)
    loss_of(model).backward()
    adapters.merge(model)
    assert (logits(model) - tuned).abs().max() < 1e-5
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("family", ["t5", "bart", "qwen", "gemma", "gpt2", "bert"])
def test_trained_tokens_are_read_everywhere_their_table_is(family: str, tmp_path: Path) -> None:
    """The same answer as a base whose table was edited: encoder, decoder and output embedding included."""
    model, edited = tiny_model(family), tiny_model(family)
    attached({"trainable_token_indices": [5, 6, 7], "target_modules": "all-linear"}, model)
    rows = next(p for n, p in adapter_of(model).trainable_parameters().items() if "trainable_tokens" in n)
    # a shift that is no constant, which a layer norm would take out again
    shift = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        rows.add_(shift)
        edited.get_input_embeddings().weight[[5, 6, 7]] += shift  # type: ignore[operator]
    inputs = inputs_for(model)
    for name in ("input_ids", "decoder_input_ids"):
        if name in inputs:
            inputs[name][:, :3] = torch.tensor([5, 6, 7])
    with torch.no_grad():
        plain = tiny_model(family)(**inputs).logits
        expected = edited(**inputs).logits
        tuned = model(**inputs).logits
    assert (expected - plain).abs().max() > 1e-3
    bound = 1e-5 * max(1.0, float(expected.abs().max()))
    assert (tuned - expected).abs().max() < bound
    adapters.save(model, tmp_path)
    again = tiny_model(family)
    adapters.load(again, tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, tuned)
    adapters.merge(model)
    with torch.no_grad():
        assert (model(**inputs).logits - expected).abs().max() < bound
    assert [len(list(model.parameters())), model.config.tie_word_embeddings] == [  # type: ignore[union-attr]
        len(list(edited.parameters())),
        edited.config.tie_word_embeddings,  # type: ignore[union-attr]
    ], "tied tensors came apart"


def test_token_rows_of_tied_embeddings_that_are_both_named() -> None:
    tied = {"embed_tokens": [5, 6], "lm_head": [5, 6]}
    model = attached({"trainable_token_indices": tied, "target_modules": ["q_proj"]}, llama(tie_word_embeddings=True))
    keys = [key for key in adapter_of(model).trainable_parameters() if "trainable_tokens" in key]
    assert keys == ["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    apart = {"embed_tokens": [5, 6], "lm_head": [7]}
    model = attached({"trainable_token_indices": apart, "target_modules": ["q_proj"]}, llama(tie_word_embeddings=True))
    assert len([key for key in adapter_of(model).trainable_parameters() if "trainable_tokens" in key]) == 2
    with pytest.raises(AdapterError, match="different tokens"):
        attached({"trainable_token_indices": apart, "ensure_weight_tying": True}, llama(tie_word_embeddings=True))


def test_an_update_of_a_tied_head_comes_on_top_of_its_trained_rows(tmp_path: Path) -> None:
    """As in the reference, whose file names the head's pair plainly; the wrong order left the update out of these rows."""
    section = {"target_modules": ["lm_head"], "trainable_token_indices": [5, 6], "r": 4}
    model = disturbed(attached(section, llama(tie_word_embeddings=True)))
    adapters.save(model, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    pair = [stored[f"base_model.model.lm_head.lora_{half}.weight"] for half in "BA"]
    rows = stored["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    scaling = 8 / 4
    plain = llama(tie_word_embeddings=True)
    with torch.no_grad():
        plain.get_parameter("model.embed_tokens.weight")[[5, 6]] = rows
        hidden = plain.model(input_ids=IDS)[0]  # type: ignore[operator, union-attr]
        table = plain.get_parameter("model.embed_tokens.weight") + scaling * pair[0] @ pair[1]
        expected = hidden @ table.T
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    adapters.merge(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "section", [{"target_modules": ["lm_head"], "use_dora": True}, {"modules_to_save": ["lm_head"]}]
)
def test_token_rows_and_another_copy_of_the_tied_head_are_refused(section: dict[str, Any]) -> None:
    section = {"target_modules": ["q_proj"], **section, "trainable_token_indices": [5]}
    with pytest.raises(AdapterError, match=r"both adapt lm_head .lm_head: tied to the token embedding"):
        attached(section, llama(tie_word_embeddings=True))
    attached(section, llama(tie_word_embeddings=False))


def test_a_saved_module_and_its_part_are_refused() -> None:
    with pytest.raises(AdapterError, match="up_proj` and a module that it is part of"):
        attached({"target_modules": ["q_proj"], "modules_to_save": ["mlp", "up_proj"]})


def test_token_rows_refuse_what_they_cannot_mean() -> None:
    with pytest.raises(AdapterError, match="vocabulary of 64"):
        attached({"trainable_token_indices": [64]})
    with pytest.raises(AdapterError, match="twice"):
        attached({"trainable_token_indices": [3, 3]})
    with pytest.raises(AdapterError, match="both adapt"):
        attached({"trainable_token_indices": [3], "target_modules": ["embed_tokens"]})
    with pytest.raises(AdapterError, match="wte"):
        attached({"trainable_token_indices": {"wte": [3]}})


def test_experts_have_one_pair_each() -> None:
    section = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    model = disturbed(attached(section, mixtral()))
    named = dict(adapter_of(model).trainable_parameters())
    key = "base_model.model.model.layers.0.mlp.experts"
    a, b = named[f"{key}.base_layer.lora_A.weight"], named[f"{key}.base_layer.lora_B.weight"]
    assert (a.shape, b.shape) == ((12, 32), (48, 12))
    tuned = logits(model)
    experts = model.model.layers[0].mlp.experts
    weight = experts.gate_up_proj.detach().clone()
    for expert in range(3):
        # rows of A stand expert by expert, columns of B rank by rank
        weight[expert] += 2.0 * b.detach()[:, expert::3] @ a.detach()[4 * expert : 4 * expert + 4]
    adapters.merge(model)
    assert torch.allclose(model.model.layers[0].mlp.experts.gate_up_proj, weight, atol=1e-6)
    assert (logits(model) - tuned).abs().max() < 1e-5


def test_unknown_expert_weights_are_errors() -> None:
    with pytest.raises(AdapterError, match="gate_up_proj"):
        attached({"target_parameters": ["experts.up"], "target_modules": ["q_proj"]}, mixtral())
    with pytest.raises(RecipeError, match="target_parameters"):
        attached({"target_parameters": ["experts.gate_up_proj"], "use_dora": True}, mixtral())


@pytest.mark.parametrize("targets", [["embed_tokens", "q_proj"], ["lm_head", "q_proj"]])
def test_tied_embeddings_stay_one_tensor_when_asked(targets: list[str], tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    disturbed(attached({"target_modules": targets, "ensure_weight_tying": True}, model))
    assert sum("lora_embedding" in key for key in adapter_of(model).trainable_parameters()) == 2
    tuned = logits(model)
    adapters.save(model, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    prefix = "base_model.model."
    pair = stored[f"{prefix}lm_head.lora_B.weight"], stored[f"{prefix}model.embed_tokens.lora_embedding_A"]
    assert torch.equal(pair[0], pair[1].T)
    again = llama(tie_word_embeddings=True)
    adapters.load(again, tmp_path)
    assert torch.equal(logits(again), tuned)
    adapters.merge(model)
    assert (logits(model) - tuned).abs().max() < 1e-5
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_one_side_of_tied_embeddings_is_untied_by_merging() -> None:
    model = disturbed(attached({"target_modules": ["lm_head"]}, llama(tie_word_embeddings=True)))
    tuned = logits(model)
    adapters.merge(model)
    assert (logits(model) - tuned).abs().max() < 1e-5
    assert model.config.tie_word_embeddings is False


def test_saved_modules_are_tied_only_when_asked() -> None:
    section = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    for ensure in (False, True):
        model = attached({**section, "ensure_weight_tying": ensure}, llama(tie_word_embeddings=True))
        copies = [p for key, p in adapter_of(model).trainable_parameters().items() if "lora" not in key]
        assert len(copies) == (1 if ensure else 2)
        assert len({entry.key for entry in adapter_of(model).entries() if "lora" not in entry.key}) == 2


def test_repeated_blocks_share_the_base_and_learn_apart(tmp_path: Path) -> None:
    model = llama()
    plain = logits(model)
    names = [name for name, _ in model.named_parameters()]
    section = {"layer_replication": [[1, 2], [0, 2]], "target_modules": ["q_proj", "v_proj"]}
    disturbed(attached(section, model))
    assert len(model.model.layers) == model.config.num_hidden_layers == 3
    assert model.model.layers[0].mlp.up_proj.weight is model.model.layers[2].mlp.up_proj.weight
    tuned = logits(model)
    with adapters.disabled(model):
        assert torch.equal(logits(model), plain)
        assert model.config.num_hidden_layers == 2
    assert torch.equal(logits(model), tuned)
    generated = [model.generate(IDS, max_new_tokens=4, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*generated)
    adapters.save(model, tmp_path)
    again = llama()
    adapters.load(again, tmp_path)
    assert torch.equal(logits(again), tuned)
    adapters.detach(again)
    assert torch.equal(logits(again), plain)
    assert [name for name, _ in again.named_parameters()] == names
    adapters.merge(model)
    assert (logits(model) - tuned).abs().max() < 1e-5
    assert model.config.num_hidden_layers == 3
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    assert len(pointers) == len(set(pointers)), "merged, every block has weights of its own"
    with pytest.raises(AdapterError, match="2 blocks"):
        attached({"layer_replication": [[0, 3]]})


def test_half_precision_files_are_read_into_float32_and_written_as_they_were(tmp_path: Path) -> None:
    adapters.save(disturbed(attached({})), tmp_path / "first")
    path = tmp_path / "first" / "adapter_model.safetensors"
    save_file({key: value.bfloat16() for key, value in load_file(path).items()}, path, metadata={"format": "pt"})
    model = llama()
    adapters.load(model, tmp_path / "first", trainable=True)
    assert all(p.dtype == torch.float32 for p in adapter_of(model).trainable_parameters().values())
    adapters.save(model, tmp_path / "second")
    assert (tmp_path / "second" / path.name).read_bytes() == path.read_bytes()
    disturbed(model)
    adapters.save(model, tmp_path / "third")
    stored = load_file(tmp_path / "third" / path.name).values()
    assert all(value.dtype == torch.float32 for value in stored), "trained on, nothing is rounded away"


def test_modules_without_an_embedding_can_be_adapted() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Conv2d(1, 2, 3), nn.Linear(8, 3))
    assert adapters.attach(model, {"type": "lora", "r": 2}).trainable == 2 * (6 + 8 + 8 + 3)
    adapters.detach(model)
    with pytest.raises(AdapterError, match="Conv2d"):
        adapters.attach(model, {"type": "lora", "r": 2, "target_modules": ["2"]})
    with pytest.raises(ModelError, match="nor a linear layer"):
        adapters.attach(nn.Sequential(nn.ReLU()), {"type": "lora"})


def test_repeated_blocks_beyond_the_base_alone(tmp_path: Path) -> None:
    """Every key then names a block that the bare model does not have: `self_attn` was taken for the adapter's name."""
    section = {"layer_replication": [[0, 2], [0, 2]], "target_modules": ["q_proj"], "layers_to_transform": [3], "r": 4}
    model = disturbed(attached(section))
    adapters.save(model, tmp_path)
    again = llama()
    adapters.load(again, tmp_path)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)
