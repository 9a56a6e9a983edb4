"""A tiny next-token model with a LoRA of its own, so that the loop is tested without any other room."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from peftcli import files
from peftcli.errors import PeftcliError, exit_code_of
from peftcli.training.acceleration import build_accelerator
from peftcli.training.checkpoint import CheckpointStore
from peftcli.training.config import CheckpointConfig, TrainingConfig
from peftcli.training.interfaces import Batch
from peftcli.training.setup import FitSetup

VOCABULARY, WIDTH, RANK = 23, 12, 4


class LoraLinear(nn.Module):
    def __init__(self, base: nn.Linear, dropout: float) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, RANK))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.dropout(x) @ self.lora_A.T @ self.lora_B.T


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.up = LoraLinear(nn.Linear(WIDTH, WIDTH), dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.up(x))


class TinyModel(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("lora" in name or name == "bias")

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x) + self.bias


class TinyAdapter:
    """The `Trainable` of TinyModel, with a counter as an example of state that is not trained."""

    def __init__(self, model: TinyModel) -> None:
        self.model = model
        self.calls = torch.zeros((), dtype=torch.int64)
        self.training = False

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: tensor for name, tensor in self.model.named_parameters() if tensor.requires_grad}

    def decays(self, parameter: nn.Parameter) -> bool:
        return parameter.ndim >= 2

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        named = self.trainable_parameters()
        fast = [tensor for name, tensor in named.items() if "lora_B" in name]
        slow = [tensor for name, tensor in named.items() if "lora_B" not in name]
        return [
            {"params": slow, "lr": learning_rate, "weight_decay": weight_decay},
            {"params": fast, "lr": 2 * learning_rate, "weight_decay": weight_decay},
        ]

    def after_step(self, step: int, total_steps: int) -> None:
        assert self.model.bias.grad is not None
        self.calls += step

    def extra_loss(self) -> Tensor | None:
        return 1e-3 * sum((parameter**2).sum() for parameter in self.trainable_parameters().values())

    def state(self) -> dict[str, Tensor]:
        return {**{n: p.detach() for n, p in self.trainable_parameters().items()}, "calls": self.calls}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.state().items():
                tensor.copy_(state[name])

    def set_training(self, training: bool) -> None:
        self.training = training


@dataclass(frozen=True)
class TinyRow:
    input_ids: np.ndarray
    weights: np.ndarray
    parts: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class TinyLoss:
    total: Tensor
    weight: float
    facts: dict[str, Tensor] = field(default_factory=dict)


class TinyOrder:
    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.steps_per_epoch = -(-num_rows // batch_size)

    def batch(self, epoch: int, index: int) -> np.ndarray:
        order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self.num_rows)
        return order[index * self.batch_size : (index + 1) * self.batch_size]


def make_rows(num_rows: int, seed: int = 0) -> list[TinyRow]:
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        length = int(draw.integers(4, 15))
        weights = np.ones(length, dtype=np.float32)
        weights[: int(draw.integers(0, length - 2))] = 0.0  # a masked prompt
        rows.append(TinyRow(draw.integers(0, VOCABULARY, length).astype(np.int32), weights))
    return rows


def collate(rows: Sequence[TinyRow]) -> Batch:
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    weights = torch.zeros(len(rows), longest)
    for number, row in enumerate(rows):
        ids[number, : len(row.input_ids)] = torch.from_numpy(row.input_ids)
        weights[number, : len(row.input_ids)] = torch.from_numpy(row.weights)
    return {"input_ids": ids, "weights": weights}


def compute_loss(model: nn.Module, batch: Batch) -> TinyLoss:
    logits = model(batch["input_ids"])[:, :-1]
    targets, weights = batch["input_ids"][:, 1:], batch["weights"][:, 1:]
    nll = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return TinyLoss((nll * weights).sum(), float(weights.double().sum()))


class Events(list[dict[str, Any]]):
    def __call__(self, event: str, step: int, **facts: Any) -> None:
        self.append({"event": event, "step": step, **facts})

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self if line["event"] == event]


@dataclass
class Tiny:
    """A setup and what it is made of."""

    setup: FitSetup
    model: TinyModel
    adapter: TinyAdapter
    events: Events

    def weights(self) -> dict[str, bytes]:
        return {name: tensor.numpy().tobytes() for name, tensor in self.adapter.state().items()}


def make_tiny(
    folder: Path | None = None,
    *,
    steps: int = 12,
    dropout: float = 0.0,
    num_rows: int = 22,
    micro_batch_size: int = 2,
    learning_rate: float = 3e-2,
    checkpoint: CheckpointConfig | None = None,
    evaluate_every: int | None = None,
    resume: bool = False,
    keep: int = 2,
    compute_loss: Callable[[nn.Module, Batch], Any] = compute_loss,
    identity: dict[str, Any] | None = None,
    **config: Any,
) -> Tiny:
    torch.manual_seed(7)
    model = TinyModel(dropout)
    adapter = TinyAdapter(model)
    rows, held_out = make_rows(num_rows), make_rows(6, seed=1)
    training = TrainingConfig.model_validate({"batch_size": 8, **config})
    events = Events()

    def evaluate(step: int) -> dict[str, float]:
        assert not model.training
        assert not adapter.training
        with torch.no_grad():
            loss = compute_loss(model, collate(held_out))
        return {"eval_loss": float(loss.total) / loss.weight}

    setup = FitSetup(
        model=model,
        adapter=adapter,
        order=TinyOrder(num_rows, training.batch_size, seed=3),
        get_rows=lambda indices: [rows[index] for index in indices],
        collate=collate,
        compute_loss=compute_loss,
        accelerator=build_accelerator(device="cpu", precision="fp32"),
        config=training,
        total_steps=steps,
        learning_rate=learning_rate,
        micro_batch_size=micro_batch_size,
        seed=5,
        checkpoint=checkpoint or CheckpointConfig(every=4),
        store=None if folder is None else CheckpointStore(folder, "run", keep, identity or {"recipe": "abc"}),
        resume=resume,
        evaluate=evaluate if evaluate_every else None,
        evaluate_every=evaluate_every,
        emit=events,
        blocks=list(model.blocks),
        probe_rows=list(range(8)),
    )
    return Tiny(setup, model, adapter, events)


class Child:
    """A fork of this warm process that runs `body`; what it prints comes back, and its exit status as a shell's."""

    def __init__(self, body: Callable[[], None]) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            os._exit(_exit_code(body))
        os.close(writer)
        self.output = os.fdopen(reader)

    def wait_for(self, line: str) -> None:
        for found in self.output:
            if found.strip() == line:
                return
        pytest.fail("the child ended early")

    def end(self) -> tuple[int, str]:
        text = self.output.read()
        self.output.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), text


def _exit_code(body: Callable[[], None]) -> int:
    try:
        body()
    except PeftcliError as error:
        print(error)
        return exit_code_of(error)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


@pytest.fixture
def forked() -> Callable[[Callable[[], None]], Child]:
    if torch.cuda.device_count():
        pytest.skip("autograd's device threads do not survive a fork; run with CUDA_VISIBLE_DEVICES=''")
    return Child


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut in a test that is about other things."""

    class QuickDisk(files.Disk):
        def sync(self, descriptor: int) -> None: ...

    monkeypatch.setattr(files, "disk", QuickDisk())


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(name="make_tiny")
def _make_tiny() -> Callable[..., Tiny]:
    """Builds a setup around a fresh model; two calls with the same arguments give equal ones."""
    return make_tiny
