"""What training does on a GPU and not on a CPU: deterministic kernels that torch may refuse, states that are paged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peftcli.training import seeding, stepper
from peftcli.training.guards import LivenessWatch
from peftcli.training.loop import fit
from peftcli.training.optimizer_state import flatten, parameter_names, unflatten

MakeTiny = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("quick_disk")


def test_only_cuda_is_strict() -> None:
    assert seeding.deterministic_mode("cuda") == seeding.deterministic_mode("cuda:0") == "error"
    assert seeding.deterministic_mode("cpu") == seeding.deterministic_mode("mps") == "warn"
    assert seeding.determinism("cuda")["deterministic_algorithms"] == "error"
    assert seeding.determinism("cpu") == {"deterministic_algorithms": "warn", "cublas_workspace": ":4096:8"}


class Modes(list[int]):
    """torch's deterministic mode at each forward pass (1: warn, 2: error)."""

    def around(self, compute_loss: Callable[..., Any]) -> Callable[..., Any]:
        def noted(model: nn.Module, batch: Any) -> Any:
            self.append(torch.get_deterministic_debug_mode())
            return compute_loss(model, batch)

        return noted


def test_passes_are_strict_and_evaluations_are_not(make_tiny: MakeTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling needs sums that have no deterministic kernel; nothing is trained on them."""
    monkeypatch.setattr(stepper, "deterministic_mode", lambda device: seeding.STRICT)
    evaluated: list[int] = []
    tiny, modes = make_tiny(steps=2, evaluate_every=1), Modes()
    tiny.setup.compute_loss = modes.around(tiny.setup.compute_loss)
    inner = tiny.setup.evaluate
    tiny.setup.evaluate = lambda step: (evaluated.append(torch.get_deterministic_debug_mode()), inner(step))[1]
    before = torch.get_deterministic_debug_mode()
    fit(tiny.setup)
    assert set(modes) == {2}
    assert set(evaluated) == {1}
    assert torch.get_deterministic_debug_mode() == before


def with_an_operation_that_never_repeats(tiny: Any, at: str) -> None:
    """`put_` has no deterministic form on any device; in the loss, or in its backward pass."""
    inner = tiny.setup.compute_loss

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            put()
            return gradient

    def put() -> None:
        torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))

    def compute_loss(model: nn.Module, batch: Any) -> Any:
        loss = inner(model, batch)
        if at == "forward":
            put()
            return loss
        return type(loss)(Backward.apply(loss.total), loss.weight)

    tiny.setup.compute_loss = compute_loss


@pytest.mark.parametrize("at", ["forward", "backward"])
@pytest.mark.filterwarnings("ignore:put_ does not have")
def test_a_refused_operation_is_told_and_the_run_goes_on(
    make_tiny: MakeTiny, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    expected = fit(make_tiny(steps=4, dropout=0.2).setup)
    monkeypatch.setattr(stepper, "deterministic_mode", lambda device: seeding.STRICT)
    tiny = make_tiny(steps=4, dropout=0.2)
    with_an_operation_that_never_repeats(tiny, at)
    result = fit(tiny.setup)
    assert result.losses == expected.losses
    assert len(tiny.events.of("nondeterministic")) == 1
    assert "no deterministic kernel for put_" in result.warnings[0]
    assert result.micro_batch_size == expected.micro_batch_size


def test_cublas_that_started_too_early_is_named() -> None:
    error = RuntimeError(
        "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or ..., but this "
        "operation is not deterministic because it uses CuBLAS and you have CUDA >= 10.2. To enable ..."
    )
    assert seeding.refuses_determinism(error)
    assert seeding.refused_operation(error) == "cuBLAS, used before CUBLAS_WORKSPACE_CONFIG was set"
    assert not seeding.refuses_determinism(RuntimeError("shapes do not fit"))


@pytest.mark.filterwarnings("ignore:put_ does not have")
def test_a_start_is_computed_again_where_torch_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []

    def compute() -> float:
        modes.append(torch.get_deterministic_debug_mode())
        return float(torch.zeros(3).put_(torch.tensor([1]), torch.ones(1)).sum())

    assert seeding.as_deterministic_as_possible(compute, "cuda") == 1.0
    assert modes == [2, 1]
    modes.clear()
    assert seeding.as_deterministic_as_possible(compute, "cpu") == 1.0
    assert modes == [torch.get_deterministic_debug_mode()], "on a CPU nothing changes"


def test_liveness_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One fetch for all tensors, however many there are."""
    parameters = {str(number): nn.Parameter(torch.ones(3)) for number in range(20)}
    for parameter in parameters.values():
        parameter.grad = torch.ones(3)
    waits: list[int] = []
    fetch = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: (waits.append(self.numel()), fetch(self))[1])
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: pytest.fail("a wait for one tensor"))
    LivenessWatch(parameters).observe(last=True)
    assert waits == [20]


class Paged(torch.Tensor):
    """Memory of the library's own, as bitsandbytes marks it."""

    is_paged = True


class PagedOptimizer(torch.optim.Optimizer):
    """Keeps its states as bitsandbytes does: in buffers from `init_state`, and a kernel that looks nowhere else."""

    is_paged = True

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.1})

    def init_state(self, group: Any, parameter: nn.Parameter, group_index: int, place: int) -> None:
        buffer = torch.zeros_like(parameter.detach()).as_subclass(Paged)
        self.state[parameter] = {"step": 0, "state1": buffer, "absmax1": torch.zeros(2)}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for index, group in enumerate(self.param_groups):
            for place, parameter in enumerate(group["params"]):
                if not self.state[parameter]:
                    self.init_state(group, parameter, index, place)
                assert isinstance(self.state[parameter]["state1"], Paged), "the kernel would read memory of the host"
                self.state[parameter]["step"] += 1
                self.state[parameter]["state1"].add_(1.0)


def test_paged_states_come_back_into_paged_memory() -> None:
    """After resuming (no state yet) and after a rollback (buffers that the kernel already knows)."""
    parameters = {
        "a": nn.Parameter(torch.ones(3)),
        "b": nn.Parameter(torch.ones(4)),
        "idle": nn.Parameter(torch.ones(1)),
    }
    optimizer = PagedOptimizer([{"params": [parameters["a"]]}, {"params": [parameters["b"]]}])
    names = parameter_names(optimizer, parameters)
    optimizer.step()
    tensors, scalars = flatten(optimizer, names)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # as from a file
    optimizer.step()
    live = optimizer.state[parameters["a"]]["state1"]
    unflatten(optimizer, names, tensors, scalars)  # back
    assert optimizer.state[parameters["a"]]["state1"] is live
    assert float(live[0]) == 1.0
    resumed = PagedOptimizer([{"params": [parameters["a"]]}, {"params": [parameters["b"]]}])
    unflatten(resumed, parameter_names(resumed, parameters), tensors, scalars)
    resumed.step()
    optimizer.step()
    again, other = flatten(resumed, parameter_names(resumed, parameters))[0], flatten(optimizer, names)[0]
    assert all(torch.equal(again[name], other[name]) for name in again)
    assert resumed.state[parameters["b"]]["step"] == 2


def test_an_interrupted_run_with_paged_states(
    make_tiny: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftcli.training import loop

    monkeypatch.setattr(loop, "build_optimizer", lambda config, groups, learning_rate: PagedOptimizer(groups))
    monkeypatch.setattr(stepper.EffectWatch, "observe", lambda self, step: None)
    whole = make_tiny(tmp_path / "whole", steps=6)
    fit(whole.setup)
    part = make_tiny(tmp_path / "part", steps=6)
    part.setup.last_step = 4
    fit(part.setup)
    resumed = make_tiny(tmp_path / "part", steps=6, resume=True)
    assert fit(resumed.setup).resumed_from == 4
    assert resumed.weights() == whole.weights()
