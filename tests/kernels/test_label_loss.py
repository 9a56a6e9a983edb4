"""Loss and gradients of a head in chunks against all logits at once, with a head of plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peftcli.kernels import label_loss as module
from peftcli.kernels.label_loss import Head, chunks, label_loss, plain_label_loss

ROWS, HIDDEN, VOCABULARY = 11, 5, 7


def nll(logits: Tensor, tokens: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, tokens, reduction="none")


def setting(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Head]:
    """Hidden states, tokens, weights, the head's matrix, and a soft-capped head of it."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    matrix = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype).requires_grad_()
    tokens = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    weights = torch.rand(ROWS, generator=generator).to(dtype)
    head = Head(lambda states: 2.0 * torch.tanh(states @ matrix.T / 2.0), [matrix], VOCABULARY)
    return hidden, tokens, weights, matrix, head


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_ROWS", 3)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1)


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("trains_head", [True, False])
@pytest.mark.parametrize("trains_hidden", [True, False])
def test_chunks_add_up_to_the_plain_loss_and_its_gradients(trains_hidden: bool, trains_head: bool) -> None:
    hidden, tokens, weights, matrix, head = setting()
    hidden.requires_grad_(trains_hidden)
    matrix.requires_grad_(trains_head)
    head = Head(head.logits, [matrix] if trains_head else [], VOCABULARY)
    found, plain = (form(hidden, tokens, weights, head, nll) for form in (label_loss, plain_label_loss))
    assert found.item() == pytest.approx(plain.item(), rel=1e-12)
    wanted = [t for t in (hidden, matrix) if t.requires_grad]
    assert found.requires_grad == bool(wanted)
    if wanted:
        ours, theirs = (torch.autograd.grad(3.0 * loss, wanted) for loss in (found, plain))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("few_rows")
def test_gradients_are_right_to_the_last_digits() -> None:
    hidden, tokens, weights, matrix, head = setting()
    assert torch.autograd.gradcheck(lambda h, _m: label_loss(h, tokens, weights, head, nll), (hidden, matrix))


@pytest.mark.usefixtures("few_rows")
def test_no_more_logits_than_one_chunk_exist_at_a_time() -> None:
    hidden, tokens, weights, matrix, head = setting()
    rows: list[int] = []
    watched = Head(lambda states: rows.append(len(states)) or head.logits(states), [matrix], VOCABULARY)  # type: ignore[func-returns-value]
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):  # type: ignore[func-returns-value]
        loss = label_loss(hidden, tokens, weights, watched, nll)
        outside = list(kept)
    assert rows == [3, 3, 3, 2]
    assert (ROWS, VOCABULARY) not in outside
    loss.backward()


def test_a_second_derivative_is_refused() -> None:
    hidden, tokens, weights, _, head = setting()
    (first,) = torch.autograd.grad(label_loss(hidden, tokens, weights, head, nll) ** 2, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_nothing_to_learn_from_costs_nothing() -> None:
    hidden, tokens, weights, _, head = setting(torch.float32)
    loss = label_loss(hidden[:0], tokens[:0], weights[:0], head, nll)
    loss.backward()
    assert loss.item() == 0.0


def test_chunks_cover_all_rows_once() -> None:
    assert [index for part in chunks(1000, 10**6) for index in range(1000)[part]] == list(range(1000))
    assert chunks(0, 10) == []
    assert len(chunks(1024, 8192)) == 1
