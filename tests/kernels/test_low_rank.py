"""The low-rank linear function against its plain form: values, gradients, what it keeps, when its copies are renewed."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from peftcli.kernels.active import active, next_step, told, using
from peftcli.kernels.low_rank import Pair, low_rank_linear, paired, plain_low_rank_linear
from peftcli.kernels.names import LOW_RANK
from peftcli.kernels.shadow import Shadows

ROWS, WIDE, NARROW, RANK, SCALING = 6, 10, 7, 3, 1.75


def tensors(dtype: torch.dtype, *, masters: torch.dtype | None = None, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (2, ROWS, WIDE), "weight": (NARROW, WIDE), "bias": (NARROW,), "a": (RANK, WIDE), "b": (NARROW, RANK)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: t.to((masters or dtype) if name in "ab" else dtype) for name, t in made.items()}


def pair_of(found: dict[str, Tensor], dtype: torch.dtype) -> Pair:
    return paired(found["a"], found["b"], SCALING, dtype, Shadows())


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("needs", [("x", "a", "b"), ("a", "b"), ("x", "b"), ("b",), ("x",), ("a",)])
def test_gradients_are_right_to_the_last_digits(needs: tuple[str, ...], with_bias: bool) -> None:
    found = tensors(torch.float64)
    inputs = tuple(found[name].requires_grad_() for name in needs)

    def call(*given: Tensor) -> Tensor:
        now = {**found, **dict(zip(needs, given, strict=True))}
        pair = Pair(now["a"], now["b"], now["a"].detach(), now["b"].detach(), SCALING)
        return low_rank_linear(now["x"], now["weight"], now["bias"] if with_bias else None, pair)

    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_equals_the_plain_form(dtype: torch.dtype, tolerance: float) -> None:
    masters = torch.float64 if dtype == torch.float64 else torch.float32
    answers = []
    for form in (low_rank_linear, plain_low_rank_linear):
        found = tensors(dtype, masters=masters)
        trained = [found[name].requires_grad_() for name in ("x", "a", "b")]
        answer = form(found["x"], found["weight"], found["bias"], pair_of(found, dtype))
        assert answer.dtype == dtype
        answer.backward(torch.randn(answer.shape, generator=torch.Generator().manual_seed(1)).to(dtype))
        answers.append([answer.detach(), *(t.grad for t in trained)])
        assert [t.grad.dtype for t in trained if t.grad is not None] == [dtype, masters, masters]
    for ours, plain in zip(*answers, strict=True):
        scale = plain.abs().max()
        torch.testing.assert_close(ours / scale, plain / scale, rtol=0, atol=tolerance)


def test_a_transposed_weight_and_a_broken_up_input_are_taken_as_they_are() -> None:
    found = tensors(torch.float64)
    x = found["x"].transpose(0, 1)
    weight = found["weight"].T.contiguous().T
    trained = [found["a"].requires_grad_(), found["b"].requires_grad_()]
    pair = pair_of(found, torch.float64)
    ours, plain = low_rank_linear(x, weight, None, pair), plain_low_rank_linear(x, weight, None, pair)
    torch.testing.assert_close(ours, plain)
    for one, other in zip(
        torch.autograd.grad(ours.square().sum(), trained),
        torch.autograd.grad(plain.square().sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_a_second_derivative_is_refused() -> None:
    found = tensors(torch.float64)
    x = found["x"].requires_grad_()
    found["a"].requires_grad_()
    answer = low_rank_linear(x, found["weight"], None, pair_of(found, torch.float64))
    (first,) = torch.autograd.grad(answer.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def saved(x: Tensor, layers: int, form: object) -> dict[tuple[int, tuple[int, ...], torch.dtype], int]:
    """Bytes of each tensor kept for the backward pass of several layers that read one input, by its memory."""
    kept: dict[tuple[int, tuple[int, ...], torch.dtype], int] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()
        kept[(place.data_ptr(), tuple(tensor.shape), tensor.dtype)] = place.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answers = []
        for seed in range(layers):
            found = tensors(x.dtype, masters=torch.float32, seed=seed)
            found["a"].requires_grad_(), found["b"].requires_grad_()
            answers.append(form(x, found["weight"], None, pair_of(found, x.dtype)))  # type: ignore[operator]
    return kept


def test_layers_that_read_one_tensor_keep_it_once_and_in_its_own_type() -> None:
    x = torch.randn(50, WIDE).to(torch.bfloat16).requires_grad_()
    kept = saved(x, 3, low_rank_linear)
    large = {key: size for key, size in kept.items() if size > RANK * 2 * 50}
    assert {key[0] for key in large if key[1][0] == 50} == {x.untyped_storage().data_ptr()}
    assert not any(key[2] == torch.float32 for key in kept)
    plain = saved(x, 3, plain_low_rank_linear)
    assert sum(size for key, size in plain.items() if key[2] == torch.float32 and key[1][0] == 50) > 2 * 50 * WIDE * 4


def test_a_frozen_a_keeps_no_input() -> None:
    x = torch.randn(50, WIDE).requires_grad_()
    found = tensors(torch.float32)
    found["b"].requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        low_rank_linear(x, found["weight"], None, pair_of(found, torch.float32))
    assert all(t.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() for t in kept)


# -- copies of the masters -------------------------------------------------------------------------------------------


def test_a_copy_is_made_once_a_step_and_never_older_than_its_master() -> None:
    shadows, master = Shadows(), torch.nn.Parameter(torch.ones(4))
    with using([LOW_RANK]):
        next_step()
        first = shadows.of("a", master, torch.bfloat16)
        assert shadows.of("a", master, torch.bfloat16) is first
        with torch.no_grad():
            master.mul_(2.0)
        second = shadows.of("a", master, torch.bfloat16)
        assert second.tolist() == [2.0] * 4
        assert first.tolist() == [1.0] * 4, "a backward pass may still need it"
        master.data.fill_(3.0)  # past the version: as optimizers of other libraries write
        next_step()
        assert shadows.of("a", master, torch.bfloat16).tolist() == [3.0] * 4
    with using([LOW_RANK]):
        next_step()
        master.data.fill_(4.0)
        assert shadows.of("a", master, torch.bfloat16).tolist() == [4.0] * 4
    assert shadows.of("a", master, torch.float32).data_ptr() == master.data_ptr()


def test_every_block_counts_steps_of_its_own_kind() -> None:
    """Two runs in one process, on one model: the number of a step alone would not tell them apart."""
    shadows, master = Shadows(), torch.nn.Parameter(torch.ones(2))
    seen = []
    for value in (1.0, 2.0, 3.0):
        with using([LOW_RANK]):
            next_step()
            master.data.fill_(value)
            seen.append(float(shadows.of("a", master, torch.bfloat16)[0]))
    assert all(later > earlier for earlier, later in pairwise(seen))


# -- the switch ------------------------------------------------------------------------------------------------------


def test_a_fast_path_is_on_inside_its_block_while_gradients_are_wanted() -> None:
    assert not active(LOW_RANK)
    with using([LOW_RANK]):
        assert active(LOW_RANK)
        assert not active("another")
        with torch.no_grad():
            assert not active(LOW_RANK)
        assert told() == {LOW_RANK: "not taken: nothing here could use it"}
    assert not active(LOW_RANK)
    assert told() == {}
