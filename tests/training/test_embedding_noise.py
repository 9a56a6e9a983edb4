"""Noise on the input embeddings: of the stated size, in training passes only, the same again after a resume."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from peftcli.errors import ModelError
from peftcli.training.embedding_noise import noisy_embeddings
from peftcli.training.loop import fit
from tests.training.conftest import WIDTH, TinyModel, make_tiny

ALPHA = 5.0


def test_each_number_moves_by_a_uniform_draw_of_the_stated_size() -> None:
    model, ids = TinyModel(), torch.randint(0, 23, (40, 50))
    plain = model.embed(ids)
    with noisy_embeddings(model, ALPHA) as noise:
        model.train()
        moved = model.embed(ids) - plain
        model.eval()
        assert torch.equal(model.embed(ids), plain)
        model.train()
        with torch.no_grad():
            assert torch.equal(model.embed(ids), plain)
    limit = ALPHA / math.sqrt(50 * WIDTH)
    assert noise is not None
    assert noise.passes == 1
    assert float(moved.abs().max()) <= limit * (1 + 1e-5)
    # of a uniform draw in [-limit, limit]: mean 0, standard deviation limit / sqrt(3); 24,000 numbers
    assert abs(float(moved.mean())) < limit / 100
    assert float(moved.std()) == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert torch.equal(model.embed(ids), plain)


def test_training_changes_and_repeats_and_a_resumed_run_draws_the_same(tmp_path: Path) -> None:
    plain, once, again = make_tiny(), make_tiny(neftune_noise_alpha=ALPHA), make_tiny(neftune_noise_alpha=ALPHA)
    for tiny in (plain, once, again):
        fit(tiny.setup)
    assert once.weights() == again.weights()
    assert once.weights() != plain.weights()

    first = make_tiny(tmp_path, neftune_noise_alpha=ALPHA)
    first.setup.last_step = 4
    fit(first.setup)
    second = make_tiny(tmp_path, neftune_noise_alpha=ALPHA, resume=True)
    assert fit(second.setup).resumed_from == 4
    assert second.weights() == once.weights()


def test_the_measured_loss_is_without_noise() -> None:
    plain, noisy = make_tiny(evaluate_every=12), make_tiny(evaluate_every=12, neftune_noise_alpha=ALPHA)
    before = [fit(tiny.setup).evaluations[0]["eval_loss"] for tiny in (plain, noisy)]
    assert before[0] == before[1]


def test_a_model_that_goes_around_its_embedding_or_has_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = make_tiny(neftune_noise_alpha=ALPHA)
    monkeypatch.setattr(TinyModel, "get_input_embeddings", lambda self: nn.Embedding(3, 3))
    with pytest.raises(ModelError, match="does not call its input embedding"):
        fit(tiny.setup)
    monkeypatch.setattr(TinyModel, "get_input_embeddings", lambda self: None)
    with pytest.raises(ModelError, match="has no input embedding"):
        fit(tiny.setup)
