from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from peftcli.tasks.losses import target_logits as narrowing
from peftcli.tasks.losses import token_nll as nll_module
from peftcli.tasks.losses.token_nll import token_nll
from peftcli.tasks.registry import task

VOCAB = 61
TASK = task("causal-lm")
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


@dataclass
class Row:
    input_ids: np.ndarray
    weights: np.ndarray


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SMALL))


def gpt2() -> nn.Module:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, **sizes, **no_dropout))


def gemma2() -> nn.Module:
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=1.5))


def cohere() -> nn.Module:
    return CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.3))


def granite() -> nn.Module:
    return GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=3.0))


FAMILIES = [llama, gpt2, gemma2, cohere, granite]


@pytest.fixture(params=FAMILIES, ids=lambda build: build.__name__)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param()


def make_rows(lengths: tuple[int, ...] = (9, 4, 13, 2), seed: int = 0) -> list[Row]:
    """Rows whose first tokens are context, and one padding-like token (id 0) inside real text."""
    generator = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        ids = generator.integers(0, VOCAB, length).astype(np.int32)
        ids[length // 2] = 0
        weights = np.ones(length, dtype=np.float32)
        weights[: length // 3] = 0.0
        rows.append(Row(ids, weights))
    return rows


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plain_loss(model: nn.Module, rows: list[Row]) -> torch.Tensor:
    """Hugging Face's own summed loss, row by row without padding, so no mask can be at fault."""
    total = torch.zeros(())
    for row in rows:
        ids = torch.tensor(row.input_ids, dtype=torch.int64)[None]
        labels = torch.where(torch.tensor(row.weights)[None] > 0, ids, -100)
        labels[:, 0] = -100
        count = int((labels != -100).sum())
        total = total + model(input_ids=ids, labels=labels, use_cache=False).loss * count
    return total


def test_collate_pads_right_and_masks_by_place() -> None:
    rows = [
        Row(np.array([5, 7, 7], np.int32), np.array([1, 0, 2], np.float32)),
        Row(np.array([3], np.int32), np.ones(1)),
    ]
    batch = TASK.collate(rows, pad_token_id=7)
    assert batch["input_ids"].tolist() == [[5, 7, 7], [3, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["weights"].tolist() == [[0, 0, 2], [0, 0, 0]]  # a first token is never a target
    assert batch["input_ids"].dtype == torch.int64


def test_loss_and_gradients_equal_the_plain_loss(model: nn.Module) -> None:
    rows = make_rows()
    wanted = plain_loss(model, rows)
    wanted.backward()
    wanted_gradients = gradients(model)
    model.zero_grad(set_to_none=True)

    found = TASK.loss(model, TASK.collate(rows, pad_token_id=0))
    found.total.backward()

    assert narrowing.head_can_be_narrowed(model)
    assert found.weight == sum(row.weights[1:].sum() for row in rows)
    assert found.total.dtype == torch.float32
    assert found.total.item() == pytest.approx(wanted.item(), rel=1e-6)
    found_gradients = gradients(model)
    assert found_gradients.keys() == wanted_gradients.keys()
    for name, gradient in wanted_gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-4, atol=2e-6, msg=name)


def test_the_head_sees_only_rows_that_predict_a_target(model: nn.Module) -> None:
    batch = TASK.collate(make_rows(), pad_token_id=0)
    TASK.loss(model, batch)  # the proof runs once
    seen: list[tuple[int, ...]] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _m, _a, out: seen.append(tuple(out.shape)))
    TASK.loss(model, batch)
    hook.remove()
    assert seen == [(1, int((batch["weights"][:, 1:] > 0).sum()), VOCAB)]


def test_a_head_called_elsewhere_falls_back_to_full_logits() -> None:
    torch.manual_seed(0)
    model = llama()

    class Mixing(nn.Module):
        """A model that mixes positions after its head, so that a narrowed head would be wrong without an error."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def get_output_embeddings(self) -> nn.Module:
            return self.inner.lm_head

        def forward(self, **inputs: torch.Tensor) -> object:
            output = self.inner(**inputs)
            output.logits = output.logits.cumsum(dim=1)
            return output

    mixing, rows = Mixing(), make_rows()
    found = TASK.loss(mixing, TASK.collate(rows, pad_token_id=0))
    assert not narrowing.head_can_be_narrowed(mixing)
    wanted = 0.0
    for row in rows:
        logits = mixing(input_ids=torch.tensor(row.input_ids, dtype=torch.int64)[None]).logits[0, :-1].log_softmax(-1)
        nll = -logits.gather(1, torch.tensor(row.input_ids[1:], dtype=torch.int64)[:, None]).squeeze(1)
        wanted += (nll * torch.tensor(row.weights[1:])).sum().item()
    assert found.total.item() == pytest.approx(wanted, rel=1e-5)


def test_a_model_without_an_output_embedding_gives_full_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, rows = llama(), make_rows()
    wanted = TASK.loss(model, TASK.collate(rows, pad_token_id=0)).total.item()
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda self: None)
    assert TASK.loss(model, TASK.collate(rows, pad_token_id=0)).total.item() == pytest.approx(wanted, rel=1e-6)


class Prompt(nn.Module):
    """A soft prompt as hooks: lengthens the inputs in front, cuts the outputs, as prompt methods do."""

    def __init__(self, model: nn.Module, num_virtual_tokens: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_virtual_tokens, 16))
        self.embed = model.get_input_embeddings()
        model.register_forward_pre_hook(self.extend, with_kwargs=True)
        model.register_forward_hook(self.strip)

    def extend(self, _module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        ids, mask = kwargs.pop("input_ids"), kwargs.pop("attention_mask")
        front = self.weight[None].expand(len(ids), -1, -1)
        kwargs["inputs_embeds"] = torch.cat([front, self.embed(ids)], dim=1)
        kwargs["attention_mask"] = torch.cat([mask.new_ones(len(ids), len(self.weight)), mask], dim=1)
        return args, kwargs

    def strip(self, _module: nn.Module, _args: tuple, output: object) -> object:
        output.logits = output.logits[:, len(self.weight) :]
        return output


@pytest.mark.parametrize("build", [llama, gpt2, gemma2], ids=lambda build: build.__name__)
def test_prompt_methods_lengthen_the_sequence(build: object, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = build()
    prompt, rows = Prompt(model, 5), make_rows()
    batch = TASK.collate(rows, pad_token_id=0)
    found = TASK.loss(model, batch)
    found.total.backward()
    assert narrowing.head_can_be_narrowed(model)
    gradient = prompt.weight.grad.clone()
    prompt.weight.grad = None
    monkeypatch.setattr(narrowing, "head_can_be_narrowed", lambda model: False)
    wanted = TASK.loss(model, batch)
    wanted.total.backward()
    assert found.total.item() == pytest.approx(wanted.total.item(), rel=1e-6)
    torch.testing.assert_close(gradient, prompt.weight.grad, rtol=1e-4, atol=1e-6)
    assert gradient.abs().sum() > 0


LORA = {"type": "lora", "r": 4}
ATTACHED = [(gpt2, LORA), (gpt2, "bitfit"), (gpt2, "prompt_tuning"), (gemma2, LORA), (gemma2, "bottleneck")]


@pytest.mark.parametrize(("build", "method"), ATTACHED)
def test_every_kind_of_method_keeps_the_narrow_head(build: Any, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from peftcli import adapters

    torch.manual_seed(0)
    model = build()
    adapters.attach(model, method)
    batch = TASK.collate(make_rows(), pad_token_id=0)
    found = TASK.loss(model, batch)
    assert narrowing.head_can_be_narrowed(model)
    found.total.backward()
    found_gradients = gradients(model)
    assert found_gradients
    model.zero_grad(set_to_none=True)
    monkeypatch.setattr(narrowing, "head_can_be_narrowed", lambda model: False)
    wanted = TASK.loss(model, batch)
    wanted.total.backward()
    assert found.total.item() == pytest.approx(wanted.total.item(), rel=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_row_scores_equal_each_row_alone(model: nn.Module) -> None:
    rows = make_rows()
    scores = TASK.score_rows(model, TASK.collate(rows, pad_token_id=0))
    for index, row in enumerate(rows):
        ids = torch.tensor(row.input_ids, dtype=torch.int64)
        trained = torch.tensor(row.weights[1:] > 0)
        logits = model(input_ids=ids[None]).logits[0, :-1]
        assert scores.correct[index] == int((logits.argmax(-1) == ids[1:])[trained].sum())
        assert scores.targets[index] == scores.weights[index] == int(trained.sum())
        assert scores.sums[index] == pytest.approx(plain_loss(model, [row]).item(), rel=1e-5)


def test_a_batch_without_targets_is_a_zero_with_a_graph() -> None:
    torch.manual_seed(0)
    model = llama()
    rows = [Row(np.arange(4, dtype=np.int32), np.zeros(4, dtype=np.float32))]
    loss = TASK.loss(model, TASK.collate(rows, pad_token_id=0))
    assert (loss.total.item(), loss.weight) == (0.0, 0.0)
    loss.total.backward()
    scores = TASK.score_rows(model, TASK.collate(rows, pad_token_id=0))
    assert scores.weights.tolist() == [0.0]


def test_cutting_a_batch_adds_up() -> None:
    torch.manual_seed(0)
    model, rows = llama(), make_rows()
    whole = TASK.loss(model, TASK.collate(rows, pad_token_id=0))
    parts = [TASK.loss(model, TASK.collate([row], pad_token_id=0)) for row in rows]
    assert whole.weight == sum(part.weight for part in parts)
    assert whole.total.item() == pytest.approx(sum(part.total.item() for part in parts), rel=1e-6)


def test_the_proof_leaves_modes_and_shared_randomness_alone() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    model.train()
    model.transformer.h[0].eval()
    before = torch.get_rng_state()
    assert narrowing.head_can_be_narrowed(model)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert not model.transformer.h[0].training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_nll_in_chunks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(37, 11) * 8).to(dtype).requires_grad_()
    targets = torch.randint(0, 11, (37,))
    factors = torch.rand(37)
    wanted = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    (wanted * factors).sum().backward()
    wanted_gradient = logits.grad.clone()
    logits.grad = None
    monkeypatch.setattr(nll_module, "CHUNK_ELEMENTS", 55)  # five rows a chunk
    found = token_nll(logits, targets)
    (found * factors).sum().backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(logits.grad, wanted_gradient, rtol=1e-5, atol=1e-6)


def test_token_nll_gradcheck() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: token_nll(x, torch.tensor([0, 3, 6, 2, 2])), logits)


@pytest.mark.skipif("PEFTCLI_GROUND" not in os.environ, reason="PEFTCLI_GROUND names no measuring ground")
def test_a_real_base_has_its_known_loss() -> None:
    """Rows of 256 tokens of the tales, the first 32 of eval: 3.177 in the reference."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ground = Path(os.environ["PEFTCLI_GROUND"])
    folder = ground / "models" / "stories260K"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = tales_rows(ground / "data" / "tales", tokenizer)
    total = weight = 0.0
    for start in range(0, len(rows), 8):
        scores = TASK.score_rows(model.eval(), TASK.collate(rows[start : start + 8], pad_token_id=0))
        total, weight = total + scores.sums.sum(), weight + scores.weights.sum()
    assert total / weight == pytest.approx(3.177, abs=2e-3)


def tales_rows(folder: Path, tokenizer: object) -> list[Row]:
    import json

    path = next(path for path in sorted(folder.iterdir()) if "eval" in path.name)
    ids: list[int] = []
    for line in path.read_text().splitlines():
        ids += tokenizer(json.loads(line)["text"])["input_ids"]
    blocks = [np.array(ids[start : start + 256], dtype=np.int32) for start in range(0, len(ids), 256)]
    return [Row(block, np.ones(len(block), dtype=np.float32)) for block in blocks[:32]]
