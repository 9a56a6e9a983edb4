"""The loss in chunks on models of many families: equal to the loss over all logits, or left to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from peftcli import adapters
from peftcli.adapters.surgery import adapter_of
from peftcli.kernels import label_loss as kernel
from peftcli.kernels.active import next_step, told, using
from peftcli.kernels.names import LABEL_LOSS
from peftcli.tasks.losses import label_loss as module
from peftcli.tasks.losses.split_head import SplitHead
from tests.tasks.test_causal_lm import FAMILIES, SMALL, TASK, VOCAB, llama, make_rows

TIED = {"tie_word_embeddings": True}


def tied_llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SMALL, **TIED))


def opt() -> nn.Module:
    """A projection between the last layer and the head, inside the backbone."""
    sizes = {
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 8,
    }
    return OPTForCausalLM(OPTConfig(vocab_size=VOCAB, max_position_embeddings=64, dropout=0.0, init_std=0.2, **sizes))


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks so small that every batch here needs several."""
    monkeypatch.setattr(kernel, "LEAST_ROWS", 4)
    monkeypatch.setattr(kernel, "CHUNK_ELEMENTS", 1)


def passes(model: nn.Module, names: list[str]) -> tuple[Tensor, dict[str, Tensor], dict[str, str]]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(4)
    with using(names):
        next_step()
        loss = TASK.loss(model, TASK.collate(make_rows(), pad_token_id=0))
        (loss.total / loss.weight).backward()
        facts = told()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.total.detach(), gradients, facts


def require_same(model: nn.Module, *, taken: bool = True, tolerance: float = 2e-5) -> dict[str, str]:
    plain, wanted, _ = passes(model, [])
    loss, found, facts = passes(model, [LABEL_LOSS])
    assert (facts[LABEL_LOSS] == "taken") == taken
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm() + 1e-8, name
    return facts


@pytest.mark.parametrize("build", [*FAMILIES, tied_llama, opt], ids=lambda build: build.__name__)
def test_every_family_keeps_its_caps_and_scales_and_trained_heads(build: Callable[[], nn.Module]) -> None:
    """Everything is trained here, heads and tied tables among it."""
    torch.manual_seed(0)
    require_same(build().train())


ADAPTED: Mapping[str, Mapping[str, Any]] = {
    "lora on the head": {"type": "lora", "r": 3, "target_modules": ["q_proj", "lm_head"]},
    "saved head": {"type": "lora", "r": 3, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "tied pair": {"type": "lora", "r": 3, "target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "saved tied table": {"type": "lora", "r": 3, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"],
                         "ensure_weight_tying": True},
    "rows of tokens": {"type": "lora", "r": 3, "target_modules": ["q_proj"], "trainable_token_indices": [0, 5, 9]},
    "prompt": {"type": "prompt_tuning", "num_virtual_tokens": 3},
    "prefix": {"type": "prefix_tuning", "num_virtual_tokens": 3},
    "p-tuning": {"type": "p_tuning", "num_virtual_tokens": 3},
    "ia3": {"type": "ia3"},
    "norms": {"type": "ln_tuning"},
    "reft": {"type": "reft"},
    "freeze": {"type": "freeze"},
}  # fmt: skip


@pytest.mark.parametrize("label", ADAPTED)
def test_every_kind_of_adapter_gets_the_same_gradients(label: str) -> None:
    torch.manual_seed(0)
    model = tied_llama() if "tied" in label or "rows" in label else llama()
    adapters.attach(model, dict(ADAPTED[label]))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in adapter_of(model).trainable_parameters().values():
            tensor.add_(torch.empty(tensor.shape).normal_(0.0, 0.1, generator=generator))
    require_same(model.train())
    _, gradients, _ = passes(model, [LABEL_LOSS])
    assert len(gradients) >= len([p for p in model.parameters() if p.requires_grad])


def test_dropout_before_the_head_draws_as_often_as_before() -> None:
    """Draws of the layers come first and are the same; none is spent on the head's proof."""
    model = llama().train()
    adapters.attach(model, {"type": "lora", "r": 3, "target_modules": "all-linear", "lora_dropout": 0.5})
    require_same(model.train())


def test_a_head_that_reads_more_than_its_backbone_answers_is_left_alone() -> None:
    class Odd(LlamaForCausalLM):
        def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
            output = super().forward(input_ids, **kwargs)
            output.logits = output.logits + self.model.embed_tokens(input_ids).sum()  # over all positions
            return output

    torch.manual_seed(0)
    model = Odd(LlamaConfig(**SMALL)).train()
    mixing = model.lm_head.register_forward_hook(lambda module, args, out: out.cumsum(dim=1))
    assert SplitHead.of(model) is None
    facts = require_same(model, taken=False)
    assert facts[LABEL_LOSS] == "not taken: the model's head cannot be told apart from the rest"
    mixing.remove()
    require_same(model)


def test_half_precision_with_scaled_gradients_is_left_alone() -> None:
    model = llama().to(torch.float16)
    _, _, facts = passes(model.train(), [LABEL_LOSS])
    assert "float16" in facts[LABEL_LOSS]


def test_autocast_is_left_to_torch_and_draws_nothing_extra() -> None:
    model = llama().train()
    adapters.attach(model, {"type": "lora", "r": 3, "target_modules": "all-linear", "lora_dropout": 0.5})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, wanted, _ = passes(model.train(), [])
        loss, found, facts = passes(model, [LABEL_LOSS])
    assert "autocast" in facts[LABEL_LOSS]
    assert torch.equal(loss, plain)
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


def test_the_model_is_whole_again_afterwards() -> None:
    model = llama().train()
    backbone, before = model.model, list(model.named_modules())
    passes(model, [LABEL_LOSS])
    assert model.model is backbone
    assert [name for name, _ in model.named_modules()] == [name for name, _ in before]
    assert not backbone._forward_hooks
    model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        passes(model, [LABEL_LOSS])
    assert model.model is backbone


@pytest.mark.parametrize("build", [*FAMILIES, tied_llama], ids=lambda build: build.__name__)
def test_evaluation_in_chunks_scores_each_row_the_same(build: Callable[[], nn.Module], monkeypatch: Any) -> None:
    torch.manual_seed(0)
    model = build().eval()
    batch = TASK.collate(make_rows(), pad_token_id=0)
    whole = TASK.score_rows(model, batch)
    sizes: list[int] = []
    real = SplitHead.logits
    monkeypatch.setattr(SplitHead, "logits", lambda self, hidden: sizes.append(len(hidden)) or real(self, hidden))
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", VOCAB * 4)
    parts = TASK.score_rows(model, batch)
    assert len([size for size in sizes if size <= 4]) >= 4
    for name in ("weights", "correct", "targets"):
        assert (getattr(parts, name) == getattr(whole, name)).all()
    assert parts.sums == pytest.approx(whole.sums, rel=1e-5)
