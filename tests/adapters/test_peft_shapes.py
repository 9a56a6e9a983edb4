"""What Hugging Face PEFT writes for many methods, options and families is read, answers alike and is written again alike.

`make install` brings it for the tests; elsewhere this file is skipped.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from peftcli import adapters
from peftcli.errors import MergeError
from peftcli.testing import tiny_model
from peftcli.testing.case import inputs_for, logits

peft = pytest.importorskip("peft", reason="peft is not installed (pip install peft==0.21.2)")


def odd_llama(**changes: Any) -> nn.Module:
    """Sizes with few divisors, one key head, tied embeddings."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 101,
        "hidden_size": 40,
        "intermediate_size": 70,
        "num_hidden_layers": 3,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes)).eval()


def biased_llama() -> nn.Module:
    model = odd_llama(attention_bias=True, mlp_bias=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0, 0.1)
    return model


def headed(family: str, kind: str) -> nn.Module:
    config = copy.deepcopy(tiny_model(family).config)
    config.num_labels = 3  # type: ignore[union-attr]
    torch.manual_seed(0)
    return getattr(transformers, kind)(config).eval()


BASES: Mapping[str, Callable[[], nn.Module]] = {
    "odd": odd_llama,
    "biased": biased_llama,
    "half": lambda: odd_llama().to(torch.bfloat16),
    "llama classifier": lambda: headed("llama", "LlamaForSequenceClassification"),
    "bert tokens": lambda: headed("bert", "BertForTokenClassification"),
}
CLS, TOK, LM, S2S = ({"task_type": name} for name in ("SEQ_CLS", "TOKEN_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM"))
FAN = {"fan_in_fan_out": True}
ADA = {"init_r": 6, "target_r": 3, "total_step": 10}


def on(*names: str) -> dict[str, Any]:
    return {"target_modules": list(names)}


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("Lora", "gpt2", on("c_attn", "c_proj", "c_fc") | FAN),
    ("Lora", "gpt2", on("c_attn")),
    ("Lora", "gpt2", on("c_attn") | FAN | {"bias": "all"}),
    ("Lora", "gpt2", on("c_attn", "c_fc") | FAN | {"bias": "lora_only"}),
    ("Lora", "gpt2", on("c_attn", "c_fc") | FAN | {"use_dora": True}),
    ("Lora", "bert", on("query", "value") | CLS),
    ("Lora", "bert", on("query", "value") | CLS | {"modules_to_save": ["pooler"]}),
    ("Lora", "bert", on("query", "dense") | {"modules_to_save": ["classifier"]}),
    ("Lora", "roberta", on("query", "value") | CLS),
    ("Lora", "bert tokens", on("query", "value") | TOK),
    ("Lora", "llama classifier", {"target_modules": "all-linear"} | CLS),
    ("Lora", "t5", on("q", "v", "wi_0", "wo") | S2S),
    ("Lora", "t5", on("q", "lm_head")),
    ("Lora", "bart", on("q_proj", "embed_tokens")),
    ("Lora", "odd", on("q_proj", "down_proj") | {"layers_to_transform": [0, 2], "layers_pattern": "layers"}),
    ("Lora", "odd", on("q_proj") | {"layers_to_transform": 1}),
    (
        "Lora",
        "odd",
        on("q_proj", "v_proj", "down_proj")
        | {
            "rank_pattern": {"q_proj": 2, r"^model\.layers\.1\..*down_proj": 7},
            "alpha_pattern": {"v_proj": 3.5, "layers.0.self_attn.q_proj": 20},
        },
    ),
    ("Lora", "odd", {"target_modules": "all-linear", "use_rslora": True, "rank_pattern": {"down_proj": 2}}),
    ("Lora", "odd", {"target_modules": r".*layers\.[02]\..*(q|o)_proj"}),
    ("Lora", "odd", on("q_proj", "k_proj") | {"exclude_modules": ["layers.1.self_attn.q_proj"]}),
    ("Lora", "odd", {"target_modules": "all-linear", "exclude_modules": r".*mlp.*"}),
    ("Lora", "biased", on("q_proj") | {"bias": "all"}),
    ("Lora", "biased", on("q_proj", "up_proj") | {"bias": "lora_only"}),
    ("Lora", "biased", on("q_proj") | {"bias": "all", "use_dora": True}),
    ("Lora", "biased", on("q_proj") | {"lora_bias": True}),
    ("Lora", "odd", on("q_proj", "embed_tokens")),
    ("Lora", "odd", on("q_proj", "embed_tokens") | {"ensure_weight_tying": True}),
    ("Lora", "llama", on("q_proj", "embed_tokens", "lm_head")),
    ("Lora", "llama", on("q_proj", "embed_tokens") | {"use_dora": True}),
    ("Lora", "llama", on("q_proj") | {"modules_to_save": ["embed_tokens", "lm_head"]}),
    ("Lora", "odd", on("q_proj") | {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    ("Lora", "odd", on("q_proj") | {"modules_to_save": ["input_layernorm"]}),
    ("Lora", "odd", on("q_proj") | {"trainable_token_indices": [3, 7, 2]}),
    ("Lora", "llama", on("q_proj") | {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [4]}}),
    ("Lora", "odd", on("q_proj", "lm_head") | {"trainable_token_indices": [4]}),
    ("Lora", "gpt2", on("c_attn", "lm_head") | {"trainable_token_indices": {"wte": [4, 1]}}),
    ("Lora", "t5", on("q", "lm_head") | {"trainable_token_indices": [4, 1]}),
    ("Lora", "t5", on("q") | {"trainable_token_indices": [5, 6]}),
    ("Lora", "t5", on("q") | {"trainable_token_indices": {"encoder.embed_tokens": [5, 6]}}),
    ("Lora", "bart", on("q_proj") | {"trainable_token_indices": {"shared": [5, 6]}}),
    ("Lora", "gpt2", on("c_attn") | FAN | {"trainable_token_indices": {"wte": [5, 6]}}),
    ("Lora", "mixtral", on("q_proj") | {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
    (
        "Lora",
        "mixtral",
        on("v_proj") | {"target_parameters": ["experts.down_proj"], "rank_pattern": {"experts.down_proj": 3}},
    ),
    ("Lora", "odd", on("q_proj") | {"layer_replication": [[0, 2], [1, 3]]}),
    ("Lora", "odd", on("q_proj") | {"layer_replication": [[0, 2], [1, 3]], "layers_to_transform": [3]}),
    ("Lora", "odd", on("q_proj") | {"init_lora_weights": "pissa"}),
    ("Lora", "odd", on("q_proj") | {"init_lora_weights": "olora"}),
    ("Lora", "odd", on("q_proj") | {"init_lora_weights": "orthogonal"}),
    ("Lora", "odd", on("q_proj") | {"lora_alpha": 3.7, "lora_dropout": 0.1}),
    ("Lora", "odd", on("q_proj") | {"eva_config": "EvaConfig"}),
    ("Lora", "half", on("q_proj", "v_proj")),
    ("Lora", "half", on("q_proj", "v_proj") | {"use_dora": True}),
    ("Lora", "gpt_neox", on("query_key_value", "dense_h_to_4h")),
    ("Lora", "phi", {"target_modules": "all-linear", "bias": "all"}),
    ("Lora", "opt", on("q_proj", "fc1") | {"bias": "lora_only"}),
    ("Lora", "gemma", on("q_proj", "embed_tokens")),
    ("IA3", "odd", on("k_proj", "v_proj", "down_proj") | {"feedforward_modules": ["down_proj"]}),
    ("IA3", "gpt2", on("c_attn", "mlp.c_proj") | FAN | {"feedforward_modules": ["mlp.c_proj"]}),
    ("IA3", "t5", dict(S2S)),
    ("IA3", "bert", on("key", "value", "output.dense") | CLS | {"feedforward_modules": ["output.dense"]}),
    ("LoHa", "odd", on("q_proj", "down_proj") | {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 7}}),
    ("LoHa", "odd", on("q_proj") | {"use_effective_conv2d": True, "module_dropout": 0.1}),
    ("LoHa", "odd", on("q_proj") | {"layers_to_transform": [1], "modules_to_save": ["norm"]}),
    ("LoKr", "odd", on("q_proj", "down_proj") | {"r": 3, "alpha": 5}),
    ("LoKr", "odd", on("q_proj", "down_proj", "up_proj") | {"r": 2, "decompose_both": True, "decompose_factor": 4}),
    ("LoKr", "odd", on("q_proj", "down_proj") | {"r": 64}),
    ("LoKr", "odd", on("q_proj") | {"rank_pattern": {"q_proj": 1}, "rank_dropout": 0.1, "rank_dropout_scale": True}),
    ("LoKr", "odd", on("q_proj") | {"rank_dropout_scale": True, "init_weights": "lycoris"}),
    ("OFT", "odd", on("q_proj", "o_proj") | {"oft_block_size": 8}),
    ("OFT", "odd", on("q_proj") | {"r": 5, "oft_block_size": 0}),
    ("OFT", "odd", on("q_proj", "down_proj") | {"oft_block_size": 7}),
    ("OFT", "odd", on("q_proj") | {"oft_block_size": 8, "block_share": True}),
    ("OFT", "odd", on("q_proj") | {"oft_block_size": 8, "coft": True, "eps": 1e-3}),
    ("OFT", "odd", on("q_proj") | {"oft_block_size": 8, "coft": True, "block_share": True, "eps": 1e-2}),
    ("OFT", "odd", on("q_proj") | {"oft_block_size": 8, "use_cayley_neumann": False}),
    ("OFT", "odd", on("q_proj") | {"oft_block_size": 8, "num_cayley_neumann_terms": 3}),
    ("OFT", "biased", on("q_proj") | {"oft_block_size": 8, "bias": "all"}),
    ("OFT", "biased", on("q_proj") | {"oft_block_size": 8, "bias": "oft_only"}),
    ("OFT", "bert", on("query") | CLS | {"oft_block_size": 8}),
    ("Vera", "odd", on("q_proj", "down_proj") | {"r": 8}),
    ("Vera", "odd", on("q_proj") | {"r": 8, "save_projection": False, "projection_prng_key": 7}),
    ("Vera", "gpt2", on("c_attn", "c_fc") | FAN | {"r": 8}),
    ("Vera", "biased", on("q_proj") | {"r": 8, "bias": "vera_only", "d_initial": 0.3}),
    ("LNTuning", "odd", on("input_layernorm", "norm")),
    ("LNTuning", "gpt2", on("ln_1", "ln_f")),
    ("LNTuning", "bert", on("LayerNorm") | CLS),
    ("LNTuning", "odd", {"target_modules": r".*norm", "exclude_modules": ["model.norm"]}),
    ("AdaLora", "odd", on("q_proj", "down_proj") | ADA),
    ("AdaLora", "gpt2", on("c_attn") | FAN | ADA),
    ("AdaLora", "bert", on("query") | CLS | ADA),
    *(("PromptTuning", base, dict(LM)) for base in ("odd", "gpt2", "opt", "mixtral")),
    *(("PromptTuning", base, dict(S2S)) for base in ("t5", "bart")),
    *(("PromptTuning", "t5", S2S | {"num_transformer_submodules": count}) for count in (1, 2)),
    ("PromptTuning", "bert", dict(CLS)),
    ("PromptTuning", "llama classifier", dict(CLS)),
    ("PromptTuning", "bert tokens", dict(TOK)),
    ("PromptEncoder", "odd", LM | {"encoder_hidden_size": 12}),
    ("PromptEncoder", "odd", LM | {"encoder_hidden_size": 12, "encoder_reparameterization_type": "LSTM"}),
    ("PromptEncoder", "bert", CLS | {"encoder_hidden_size": 12}),
    ("PromptEncoder", "t5", S2S | {"encoder_hidden_size": 12}),
    *(
        ("PrefixTuning", base, dict(LM))
        for base in ("odd", "llama", "gpt2", "mistral", "qwen", "opt", "gpt_neox", "phi", "mixtral", "gemma")
    ),
    *(("PrefixTuning", base, dict(S2S)) for base in ("t5", "bart")),
    ("PrefixTuning", "odd", LM | {"prefix_projection": True, "encoder_hidden_size": 12}),
    *(("AdaptionPrompt", base, LM | {"adapter_len": 4, "adapter_layers": 1}) for base in ("odd", "mistral", "gpt2")),
]


def configuration(kind: str, fields: Mapping[str, Any]) -> Any:
    fields = dict(fields)
    if kind.startswith(("Prompt", "Prefix")):
        fields["num_virtual_tokens"] = 5
    if fields.get("eva_config"):
        fields["eva_config"] = getattr(peft, fields["eva_config"])()
    return getattr(peft, f"{kind}Config")(**fields)


def moved_reference(base: nn.Module, config: Any) -> Any:
    """The reference's model, its adapter away from the start."""
    model = peft.get_peft_model(base, config).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.1)
    return model


def comparable(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, list) else value


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "base", "fields"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_what_the_reference_writes(kind: str, base: str, fields: dict[str, Any], tmp_path: Path) -> None:
    build = BASES.get(base) or (lambda: tiny_model(base))
    reference = moved_reference(build(), configuration(kind, fields))
    reference.save_pretrained(tmp_path / "first")
    model = build()
    inputs = inputs_for(model)
    inputs["input_ids"][:, :6] = torch.arange(2, 8)
    plain = logits(model, inputs)
    adapters.load(model, tmp_path / "first")
    found = logits(model, inputs)
    # the reference gives logits of virtual tokens too
    width = found.shape[1] if found.dim() == 3 else None
    expected = logits(reference, inputs)
    expected = expected if width is None else expected[:, -width:]
    exact = found.dtype == torch.float32
    bound = (1e-5 if exact else 2e-2) * max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= bound
    assert float((expected - plain).abs().max()) > bound, "the adapter changes nothing, so this proves nothing"

    adapters.save(model, tmp_path / "second")
    again = logits(peft.PeftModel.from_pretrained(build(), str(tmp_path / "second")).eval(), inputs)
    again = again if width is None else again[:, -width:]
    assert float((again - expected).abs().max()) <= bound
    if fields.get("init_lora_weights") not in ("pissa", "olora"):
        tensors, documents = (
            [(tmp_path / folder / name).read_bytes() for folder in ("first", "second")]
            for name in ("adapter_model.safetensors", "adapter_config.json")
        )
        assert tensors[0] == tensors[1]
        first, second = ({k: comparable(v) for k, v in json.loads(data).items()} for data in documents)
        assert first.pop("peft_version")
        second.pop("peft_version", None)
        assert first == second
    try:
        adapters.merge(model)
    except MergeError:
        return
    if exact:
        assert float((logits(model, inputs) - found).abs().max()) <= 10 * bound
