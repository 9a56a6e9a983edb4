"""A merged folder is that of the base with the changed weights in it: nothing is lost, nothing is written anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_case import (
    LORA,
    SMALL,
    TEMPLATE,
    VOCAB,
    build_tokenizer,
    family,
    llama,
    random_model,
    read_json,
    tensors_of,
    types_of,
    write_adapter,
    write_base,
)
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)
from transformers.models.qwen3_5 import Qwen3_5Config, Qwen3_5ForConditionalGeneration

import peftcli
from peftcli import adapters
from peftcli.errors import MergeError
from peftcli.jobs.merge import merge_adapter
from peftcli.models.companions import generation_document
from peftcli.models.heads import LabelHead
from peftcli.models.load import load_model
from peftcli.models.source import resolve_base
from peftcli.models.stored import StoredTensor, StoredTypes

HEAD: dict[str, Any] = {"type": "lora", "r": 4, "target_modules": ["lm_head"]}
BESIDE = {"LICENSE": b"terms\r\n", "preprocessor_config.json": b'{ "size":  4 }', "notes.txt": b"\xff\xfe"}


def vision_language() -> Qwen3_5ForConditionalGeneration:
    text = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
              "num_position_embeddings": 16, "patch_size": 4}  # fmt: skip
    torch.manual_seed(0)
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision)).to(torch.bfloat16)


def test_a_vision_tower_stays(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", vision_language())
    adapter = write_adapter(tmp_path / "a", base, {"type": "lora", "r": 4, "target_modules": ["q_proj"]}, size=0.1)
    found = merge_adapter(adapter, output=tmp_path / "m")
    before, after = tensors_of(base), tensors_of(tmp_path / "m")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert set(after) == set(before)
    assert types_of(tmp_path / "m") == types_of(base)
    assert changed == ["model.language_model.layers.1.self_attn.q_proj.weight"]
    assert found.carried == sum("visual" in name for name in before) > 10
    assert (tmp_path / "m" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    whole = Qwen3_5ForConditionalGeneration.from_pretrained(tmp_path / "m", dtype=torch.float32)
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.allclose(whole(input_ids=ids).logits, text(input_ids=ids).logits, atol=1e-4)


def test_files_beside_the_weights_are_copied_byte_for_byte(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", llama())
    for name, data in BESIDE.items():
        (base / name).write_bytes(data)
    (base / "pytorch_model.bin").write_bytes(b"weights of another format")
    # as other libraries lay it out: the meaning is the same, the bytes are not
    tokenizer_json = json.dumps(read_json(base / "tokenizer.json"), indent=7).encode()
    (base / "tokenizer.json").write_bytes(tokenizer_json)
    adapter = write_adapter(tmp_path / "a", base, LORA)
    merge_adapter(adapter, output=tmp_path / "m", max_shard_size="64KiB")
    names = {path.name for path in base.iterdir()} - {"pytorch_model.bin", "model.safetensors"}
    for name in names:
        assert (tmp_path / "m" / name).read_bytes() == (base / name).read_bytes(), name
    assert not (tmp_path / "m" / "pytorch_model.bin").exists()
    index = read_json(tmp_path / "m" / "model.safetensors.index.json")
    assert set(index["weight_map"]) == set(tensors_of(base))
    assert len(set(index["weight_map"].values())) > 1
    AutoModelForCausalLM.from_pretrained(tmp_path / "m")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, run): a base model without a pad token, trained through a chat template that the recipe brings."""
    place = tmp_path_factory.mktemp("chat")
    base = write_base(place / "base", llama(), template=None)
    (place / "chat.jinja").write_text(TEMPLATE, encoding="utf-8")
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]}
    (place / "rows.jsonl").write_text((json.dumps(row) + "\n") * 8, encoding="utf-8")
    recipe = {
        "model": {"base": str(base), "chat_template": "chat.jinja"},
        "data": {"train": "rows.jsonl", "max_length": 64, "validation": None},
        "method": LORA,
        "training": {"max_steps": 2, "batch_size": 2},
    }
    (place / "r.json").write_text(json.dumps(recipe), encoding="utf-8")
    (place / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    peftcli.train(place / "r.yaml", output=place / "run")
    return base, place / "run"


def test_the_adapter_folder_keeps_the_tokenizer(trained: tuple[Path, Path]) -> None:
    base, run = trained
    adapter = run / "adapter"
    assert (adapter / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert read_json(adapter / "tokenizer.json")["truncation"] is None
    assert "pad_token" not in read_json(adapter / "tokenizer_config.json")
    assert (adapter / "chat_template.jinja").read_text() == TEMPLATE
    assert AutoTokenizer.from_pretrained(adapter).chat_template == TEMPLATE


def test_plain_transformers_stops_where_the_template_does(trained: tuple[Path, Path], tmp_path: Path) -> None:
    base, run = trained
    assert read_json(base / "generation_config.json")["eos_token_id"] == 257
    assert read_json(run / "adapter" / "generation_config.json")["eos_token_id"] == [257, 258]
    merge_adapter(run, output=tmp_path / "m")
    assert read_json(tmp_path / "m" / "generation_config.json")["eos_token_id"] == [257, 258]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m").generation_config.eos_token_id == [257, 258]
    assert (tmp_path / "m" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path / "m").chat_template == TEMPLATE


def test_stop_tokens_join_what_is_there() -> None:
    raw = b'{"eos_token_id":  [7, 2], "top_p": 0.5}'
    assert generation_document(raw, [2, 7], fallback={}) is raw
    assert json.loads(generation_document(raw, [2, 9], fallback={}) or b"") == {"eos_token_id": [7, 2, 9], "top_p": 0.5}
    assert generation_document(None, [2], fallback={"eos_token_id": 2}) is None
    assert generation_document(raw, [7], fallback={}, settings={"top_p": 0.5}) is raw
    more = generation_document(raw, [7], fallback={}, settings={"top_p": 0.9})
    assert json.loads(more or b"") == {**json.loads(raw), "top_p": 0.9}
    assert json.loads(generation_document(None, [], fallback={}, settings={"top_p": 0.9}) or b"") == {"top_p": 0.9}
    assert json.loads(generation_document(None, [2, 3], fallback={"eos_token_id": 2}) or b"")["eos_token_id"] == [2, 3]


def test_a_half_base_that_was_trained_in_float32_stays_half(half_base: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "one two three"}\n' * 8, encoding="utf-8")
    recipe = {"model": str(half_base), "data": {"train": "rows.jsonl", "max_length": 32, "validation": None},
              "method": LORA, "training": {"max_steps": 3, "batch_size": 2, "learning_rate": 0.05}}  # fmt: skip
    (tmp_path / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    peftcli.train(tmp_path / "r.yaml", output=tmp_path / "run", overrides={"model.dtype": "float32"})
    merge_adapter(tmp_path / "run", output=tmp_path / "m")
    assert types_of(tmp_path / "m") == types_of(half_base)
    size = (half_base / "model.safetensors").stat().st_size
    assert abs((tmp_path / "m" / "model.safetensors").stat().st_size - size) < 2000


# -- tensors that stand at several places ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "auto_class", "places"),
    [
        ("bart", "AutoModelForSeq2SeqLM", 4),
        ("t5", "AutoModelForSeq2SeqLM", 4),
        ("qwen", "AutoModelForCausalLM", 2),
    ],
)
def test_a_head_that_shares_its_table(name: str, auto_class: str, places: int, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", family(name))
    adapter = write_adapter(tmp_path / "a", base, HEAD, auto_class=auto_class)
    found = merge_adapter(adapter, output=tmp_path / "m")
    assert found.untied
    assert read_json(tmp_path / "m" / "config.json")["tie_word_embeddings"] is False
    tables = [tensor for tensor in tensors_of(tmp_path / "m").values() if tensor.shape == (VOCAB, 32)]
    assert len(tables) == places
    assert found.max_difference < 1e-4 * found.adapter_effect


def test_a_t5_whose_file_says_nothing_of_its_scale(tmp_path: Path) -> None:
    """T5 derives the scale of its last state from the tying when the file does not give it."""
    base = write_base(tmp_path / "base", family("t5"))
    config = read_json(base / "config.json")
    for key in ("tie_word_embeddings", "scale_decoder_outputs"):
        config.pop(key, None)
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    adapter = write_adapter(tmp_path / "a", base, HEAD, auto_class="AutoModelForSeq2SeqLM")
    merge_adapter(adapter, output=tmp_path / "m")
    model = AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.float32).eval()
    adapters.load(model, adapter)
    merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected, found = (m(input_ids=ids, decoder_input_ids=ids).logits for m in (model, merged))
    assert torch.allclose(expected, found, atol=1e-3)


def test_a_bias_that_is_tied_along(tmp_path: Path) -> None:
    """The head of BERT shares its weight with the embedding and its bias with its parent."""
    model = random_model("BertLMHeadModel", "BertConfig", {**SMALL, "is_decoder": True, "pad_token_id": 0})
    base = write_base(tmp_path / "base", model)
    adapter = write_adapter(tmp_path / "a", base, {"type": "lora", "r": 4, "target_modules": ["decoder"]})
    found = merge_adapter(adapter, output=tmp_path / "m")
    names = set(tensors_of(tmp_path / "m"))
    assert {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "cls.predictions.bias"} <= names
    assert found.agreement == 1.0


class ScaledWhileTied(LlamaForCausalLM):  # type: ignore[misc]
    """Scales its last state while it is tied and reads that in the forward pass, as UMT5 and SwitchTransformers do."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        answer = super().forward(*args, **kwargs)
        if self.config.tie_word_embeddings:
            answer.logits = answer.logits * 0.5
        return answer


def test_a_family_that_computes_otherwise_untied_is_refused() -> None:
    torch.manual_seed(0)
    model = ScaledWhileTied(LlamaConfig(**{**SMALL, "tie_word_embeddings": True})).eval()
    adapters.attach(model, HEAD, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(MergeError, match="computes something else once its tied embeddings are separate"):
        adapters.merge(model)
    assert model.config.tie_word_embeddings
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_stacked_wrappers_round_once() -> None:
    """Bias and scale of one layer, in bfloat16: what the inner one makes reaches the outer one unrounded."""
    model = random_model(
        "GPT2LMHeadModel", "GPT2Config", {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 1, "n_head": 4}
    )
    model.to(torch.bfloat16)
    adapters.attach(model, {"type": "ia3", "target_modules": ["c_attn"], "feedforward_modules": []}, seed=0)
    wrapper = model.get_submodule("transformer.h.0.attn.c_attn")
    with torch.no_grad():
        wrapper.base_layer.bias.normal_()
        wrapper.ia3_l.normal_()
    exact = wrapper.base_layer.bias.float() * wrapper.ia3_l.flatten()
    adapters.merge(model)
    assert torch.equal(model.transformer.h[0].attn.c_attn.bias, exact.to(torch.bfloat16))


def test_types_follow_the_nearest_name() -> None:
    """A prefix more or less, and experts that the file holds one by one."""
    names = {
        "model.language_model.layers.0.norm.weight": torch.float32,
        "model.language_model.layers.0.mlp.gate.bias": torch.float32,
        "model.language_model.layers.0.mlp.experts.0.up.weight": torch.bfloat16,
        "model.language_model.layers.0.mlp.experts.1.up.weight": torch.bfloat16,
        "model.language_model.embed.weight": torch.bfloat16,
    }
    stored = {name: StoredTensor(name, Path("f"), dtype, (64, 64)) for name, dtype in names.items()}
    types = StoredTypes(stored, ["model.layers.0.norm.weight"])
    assert types.of("model.layers.0.norm.weight") == torch.float32
    assert types.of("model.layers.0.mlp.gate.bias") == torch.float32
    assert types.of("model.layers.0.mlp.experts.up") == torch.bfloat16
    assert types.of("model.embed.weight") == torch.bfloat16


def test_the_tokenizer_of_the_adapter_where_it_is_another(llama_base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", llama_base, LORA)
    other = build_tokenizer("{{ 'other' }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    other.save_pretrained(adapter)
    merge_adapter(adapter, output=tmp_path / "m")
    assert AutoTokenizer.from_pretrained(tmp_path / "m").chat_template == other.chat_template


def test_a_head_of_the_adapter_on_a_language_model(llama_base: Path, tmp_path: Path) -> None:
    """The folder says how many labels there are and which class it is; the head for text stays in the file."""
    source = resolve_base(str(llama_base), folder=tmp_path)
    model: Any = load_model(source, auto_class="AutoModelForSequenceClassification", head=LabelHead.unnamed(5))
    model.config.pad_token_id = 0
    adapters.attach(model, {**LORA, "modules_to_save": ["score"]}, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    adapters.save(model, tmp_path / "a", base_name=str(llama_base))
    found = merge_adapter(tmp_path / "a", output=tmp_path / "m")
    ids = torch.tensor([[5, 6, 7, 8]])
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, merged(ids).logits, atol=1e-5)
    assert found.classifies
    assert read_json(tmp_path / "m" / "config.json")["architectures"] == ["LlamaForSequenceClassification"]
    assert {"score.weight", "lm_head.weight"} <= set(tensors_of(tmp_path / "m"))


@pytest.mark.parametrize("published", [RobertaForMaskedLM, RobertaForSequenceClassification])
def test_a_classifier_of_a_family_that_counts_positions_from_its_padding(published: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_labels=3
    )
    base = write_base(tmp_path / "base", published(config))
    source = resolve_base(str(base), folder=tmp_path)
    model: Any = load_model(source, auto_class="AutoModelForSequenceClassification", head=LabelHead.unnamed(3))
    adapters.attach(model, {**LORA, "target_modules": ["query", "value"], "modules_to_save": ["classifier"]}, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    adapters.save(model, tmp_path / "a", base_name=str(base))
    merge_adapter(tmp_path / "a", output=tmp_path / "m")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 1, 1]])
    with torch.no_grad():
        expected, found = (each(ids, attention_mask=(ids != 1).long()).logits for each in (model.eval(), merged))
    assert float(expected.abs().max()) > 0.1
    assert torch.allclose(found, expected, atol=1e-5)
