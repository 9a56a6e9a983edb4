"""What a step holds is counted on the meta device: against autograd's own hooks, and few layers against all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from peftcli.adapters.surgery import build, parse_config
from peftcli.data.store import EncodedRow, Origin
from peftcli.kernels.active import next_step, using
from peftcli.models.structure import structure
from peftcli.planning import step_memory
from peftcli.planning.doubts import left_out_of_the_loss
from peftcli.planning.live_memory import HEAP_LIMIT_BYTES, Bytes, LiveMemory
from peftcli.planning.memory import FRAMEWORK_BYTES, Stored, estimate
from peftcli.planning.step_memory import Rehearsal
from peftcli.tasks.registry import task
from peftcli.training.activation_checkpointing import checkpointed_blocks

SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 3000, "head_dim": 16}
LLAMA = ("llama", {**SMALL, "intermediate_size": 96, "num_hidden_layers": 9})
TWO_KINDS = (
    "gemma3_text",
    {**SMALL, "intermediate_size": 96, "num_hidden_layers": 14, "layer_types": ["sliding_attention", "full_attention"] * 7},
)  # fmt: skip
EXPERTS = (
    "qwen3_moe",
    {**SMALL, "moe_intermediate_size": 32, "num_hidden_layers": 9, "num_experts": 4, "num_experts_per_tok": 2},
)
Family = tuple[str, dict[str, Any]]


def rows(*lengths: int) -> list[EncodedRow]:
    return [
        EncodedRow(np.arange(n, dtype=np.int32), np.ones(n, dtype=np.float32), Origin(0, "rows", 1)) for n in lengths
    ]


def made(family: Family, device: str, method: str = "lora", dtype: torch.dtype = torch.float32) -> Rehearsal:
    config = transformers.AutoConfig.for_model(family[0], **family[1])
    with torch.device(device):
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    blocks = structure(model).blocks
    return Rehearsal(model, build(model, parse_config({"type": method})), task("causal-lm"), blocks)


def counted(found: Rehearsal, *lengths: int, every: int = 0, pads: bool = False) -> Bytes:
    batch = found.task.collate(rows(*lengths), pad_token_id=0)
    return found.training(batch, pads=pads, checkpoint_every=every)


def saved_bytes(found: Rehearsal, *lengths: int, every: int) -> int:
    """What autograd keeps for the backward pass of a real step, beside the model, told by its own hooks."""
    own = {t.untyped_storage().data_ptr() for t in (*found.model.parameters(), *found.model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    found.model.train()
    found.adapter.set_training(True)
    batch = found.task.collate(rows(*lengths), pad_token_id=0)
    found.task.loss(found.model, batch)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        checkpointed_blocks(list(found.blocks.values()), every),
    ):
        loss = found.task.loss(found.model, batch).total
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("lengths", [(48, 48), (48, 31)], ids=["equal rows", "padded rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_holds_what_autograd_saves_and_little_more(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    logits = (sum(lengths) - len(lengths)) * SMALL["vocab_size"] * dtype.itemsize
    kept = saved_bytes(made(LLAMA, "cpu", dtype=dtype), *lengths, every=0) - logits
    held = counted(made(LLAMA, "meta", dtype=dtype), *lengths, pads=len(set(lengths)) > 1)
    assert kept <= held.total - held.loss <= 1.01 * kept
    assert held.loss >= 2 * logits  # theirs and those of their gradient


def test_a_fast_path_is_rehearsed_as_it_is_taken() -> None:
    real, plain = (made(LLAMA, device, dtype=torch.bfloat16) for device in ("cpu", "meta"))
    logits = 94 * SMALL["vocab_size"] * torch.bfloat16.itemsize
    with using(["low_rank"]):
        next_step()
        kept = saved_bytes(real, 48, 48, every=0) - logits
    held = counted(replace(plain, kernels=("low_rank",)), 48, 48)
    assert kept <= held.total - held.loss <= 1.01 * kept
    assert held.total < counted(plain, 48, 48).total
    assert counted(replace(plain, kernels=("low_rank", "gated_mlp")), 48, 48).total < held.total


@pytest.mark.parametrize("every", [0, 2])
@pytest.mark.parametrize("family", [LLAMA, TWO_KINDS, EXPERTS], ids=lambda family: str(family[0]))
def test_few_layers_tell_the_memory_of_all(family: Family, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    few = counted(made(family, "meta"), 40, 40, every=every)
    monkeypatch.setattr(step_memory, "_MANY", 10_000)
    whole = counted(made(family, "meta"), 40, 40, every=every)
    assert few.total == pytest.approx(whole.total, rel=0.02)
    assert few.loss == whole.loss > 0


def test_recomputing_layers_holds_less() -> None:
    plain, half, all_of_them = (counted(made(LLAMA, "meta"), 64, every=every).total for every in (0, 2, 1))
    assert all_of_them < half < plain


def test_gradients_of_a_whole_base_count() -> None:
    found = made(LLAMA, "meta", "full")
    parameters = sum(parameter.nbytes for parameter in found.adapter.trainable_parameters().values())
    held = counted(found, 2)
    assert held.gradients > 0.5 * parameters
    assert held.total > parameters


def test_scoring_holds_less_than_training() -> None:
    found = made(LLAMA, "meta")
    batch = found.task.collate(rows(64), pad_token_id=0)
    assert found.evaluation(batch, pads=False).total < found.training(batch, pads=False, checkpoint_every=1).total


def test_a_rehearsal_leaves_no_trace() -> None:
    found = made(LLAMA, "meta")
    before = [(name, module.training) for name, module in found.model.named_modules()]
    counted(found, 16, every=1)
    assert [(name, module.training) for name, module in found.model.named_modules()] == before
    assert all(parameter.grad is None for parameter in found.adapter.trainable_parameters().values())
    assert not any("forward" in vars(block) for block in found.blocks.values())


def test_live_memory_counts_storages_once_and_forgets_them() -> None:
    with LiveMemory([], 7) as live:
        first = torch.empty(100, device="meta")
        view = first[:10]
        assert live._live == 400
        del first
        assert live._live == 400
        del view
        assert live._live == 0
        large = torch.empty(HEAP_LIMIT_BYTES, dtype=torch.uint8, device="meta")
    assert live.peaks[0].total == HEAP_LIMIT_BYTES
    assert live.peaks[0].heap == 400
    assert large.is_meta


def test_the_estimate_is_the_sum_of_its_parts() -> None:
    stored = Stored(base_bytes=1000, adapter_bytes=10, gradient_bytes=10, optimizer_bytes=20)
    found = estimate(stored, Bytes(500, 10, 90, 0), Bytes(50), device="cuda", merge_bytes=3000)
    document = found.to_dict()
    parts = [value for name, value in document.items() if "peak" not in name]
    assert found.training_peak_bytes == sum(parts) == document["training_peak_bytes"]
    assert (found.activation_bytes, found.loss_bytes, found.gradient_bytes) == (400, 90, 10)
    assert found.merge_peak_bytes == FRAMEWORK_BYTES["cuda"] + 3000
    assert found.peak_bytes == found.training_peak_bytes > found.evaluation_peak_bytes


@pytest.mark.parametrize("asked", [True, False])
def test_a_load_balancing_term_that_is_left_out_is_told(asked: bool) -> None:
    config = transformers.AutoConfig.for_model(*EXPERTS[:1], **EXPERTS[1], output_router_logits=asked)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    told = left_out_of_the_loss(model)
    assert bool(told) is asked
    assert not asked or "load-balancing" in told[0]
