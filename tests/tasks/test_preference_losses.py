"""Losses of compared answers, and their gradients, beside those of TRL 1.16 on the same rows (`trl/make_losses.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from peftcli.data.encode.compared import CHOSEN, PROMPT, REJECTED
from peftcli.data.store import EncodedRow, Origin
from peftcli.tasks.preference import Preference
from peftcli.tasks.preference_config import PreferenceConfig
from peftcli.tasks.preferences.batching import OTHER

KNOWN: dict[str, Any] = json.loads((Path(__file__).parent / "trl" / "losses.json").read_text(encoding="utf-8"))
CASES = sorted(KNOWN["losses"])


class Table(nn.Module):
    """A language model of which each token says the next."""

    def __init__(self, table: list[list[float]]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table))
        self.config = SimpleNamespace(vocab_size=len(table))

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


def row(number: int, **parts: list[int]) -> EncodedRow:
    kinds = {"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED, "other": OTHER}
    ids = [token for part in parts.values() for token in part]
    of = [kinds[name] for name, part in parts.items() for _ in part]
    weights = [float(kind in (CHOSEN, REJECTED)) for kind in of]
    return EncodedRow(
        np.array(ids, np.int32), np.array(weights, np.float32), Origin(0, "rows", number), np.array(of, np.int32)
    )


def rows(case: str) -> list[EncodedRow]:
    if "kto" in case or "verdicts" in case:
        return [
            row(number, prompt=prompt, **{"chosen" if verdict else "rejected": answer}, other=other)
            for number, (prompt, answer, verdict, other) in enumerate(KNOWN["verdicts"])
        ]
    return [row(number, prompt=p, chosen=c, rejected=r) for number, (p, c, r) in enumerate(KNOWN["pairs"])]


def referred(found: Preference, given: list[EncodedRow], start: Table) -> list[EncodedRow]:
    if not found.has_reference:
        return given
    said = found.reference(start, found.collate(given, pad_token_id=0))
    return [
        EncodedRow(each.input_ids, each.weights, each.origin, each.parts, (), known)
        for each, known in zip(given, said, strict=True)
    ]


def computed(case: str, cut: int) -> tuple[float, Tensor]:
    """The loss of the batch and its gradient, with `cut` rows in a part."""
    known = KNOWN["losses"][case]
    found = Preference(PreferenceConfig(**known["settings"]))
    model, start = Table(KNOWN["table"]), Table(KNOWN["far" if "drifted" in case else "start"])
    given = referred(found, rows(case), start)
    parts = [found.collate(given[at : at + cut], pad_token_id=0) for at in range(0, len(given), cut)]
    total = sum(found.weigh(part) for part in parts)
    told = found.whole_batch(model, parts)
    loss = 0.0
    for part in told:
        summed = found.loss(model, part)
        assert summed.weight == found.weigh(part)
        (summed.total / total).backward()
        loss += float(summed.total.detach()) / total
    assert model.table.grad is not None
    return loss, model.table.grad


@pytest.mark.parametrize("cut", [4, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_a_loss_and_its_gradient_are_those_of_trl(case: str, cut: int) -> None:
    loss, gradient = computed(case, cut)
    known = KNOWN["losses"][case]
    assert loss == pytest.approx(known["loss"], rel=1e-5, abs=1e-6)
    assert torch.allclose(gradient, torch.tensor(known["gradient"]), rtol=1e-5, atol=1e-6)
    assert float(gradient.abs().max()) > 1e-3


def test_the_cases_hold_a_drift_and_every_loss() -> None:
    assert KNOWN["trl"].startswith("1.16")
    assert abs(KNOWN["losses"]["kto_drifted"]["loss"] - KNOWN["losses"]["kto"]["loss"]) > 1e-3
    losses = set(PreferenceConfig.model_fields["loss"].annotation.__args__)  # type: ignore[union-attr]
    assert {each["settings"]["loss"] for each in KNOWN["losses"].values()} == losses


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, np.log(2)), ({"loss": "robust", "label_smoothing": 0.1}, np.log(2)), ({"loss": "hinge"}, 1.0),
     ({"loss": "ipo"}, 25.0), ({"loss": "apo_zero"}, 1.0), ({"loss": "apo_down"}, 1.0)],
)  # fmt: skip
def test_the_first_loss_of_a_model_is_known(settings: dict[str, Any], expected: float) -> None:
    found, start = Preference(PreferenceConfig(**settings)), Table(KNOWN["start"])
    batch = found.collate(referred(found, rows("dpo"), start), pad_token_id=0)
    loss = found.loss(start, batch)
    assert float(loss.total.detach()) / loss.weight == pytest.approx(expected, abs=1e-6)
    assert float(loss.facts["rewards_margins"]) == 0.0


def test_rows_whose_start_was_not_asked_have_no_loss() -> None:
    found, model = Preference(PreferenceConfig()), Table(KNOWN["table"])
    assert not torch.isfinite(found.loss(model, found.collate(rows("dpo"), pad_token_id=0)).total)


@pytest.mark.parametrize("case", ["dpo_and_sft", "kto_drifted", "orpo", "simpo", "apo_zero_verdicts"])
def test_evaluation_and_training_agree_however_rows_are_cut(case: str) -> None:
    known = KNOWN["losses"][case]
    found = Preference(PreferenceConfig(**known["settings"]))
    model, start = Table(KNOWN["table"]), Table(KNOWN["far" if "drifted" in case else "start"])
    given = referred(found, rows(case), start)
    from peftcli.data.store import RowIndex, TokenColumns, TokenStore
    from peftcli.evaluation.evaluate import score

    lengths = np.array([len(each.input_ids) for each in given])
    none = np.zeros(len(given), np.int32)
    columns = TokenColumns(*(np.concatenate([getattr(each, name) for each in given]) for name in
                             ("input_ids", "weights", "parts")), from_before=False)  # type: ignore[misc] # fmt: skip
    index = RowIndex(none, np.cumsum(lengths) - lengths, lengths, none, none, np.arange(len(given)))
    store = TokenStore([columns], index, ["rows"])
    if found.has_reference:
        store = store.with_reference(np.stack([each.reference for each in given]))
    for size in (1, 3, 8):
        scores = score(model, found, store, batch_size=size, pad_token_id=0)
        assert scores.sums.sum() / scores.weights.sum() == pytest.approx(known["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing has no meaning"),
        ({"simpo_gamma": 1.0}, "simpo_gamma has no meaning"),
        ({"loss": "kto", "sft_weight": 1.0}, "sft_weight has no meaning"),
        ({"loss": "orpo", "length_normalise": False}, "log-probabilities a token"),
        ({"loss": "kto", "length_normalise": True}, "length_normalise has no meaning"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"beta": 0.0}, "greater than 0"),
        ({"loss": "sigmoid"}, "dpo"),
    ],
)
def test_settings_without_an_effect_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(Exception, match=says):
        PreferenceConfig(**settings)


def test_a_certain_answer_has_finite_odds() -> None:
    found = Preference(PreferenceConfig(loss="orpo"))
    table = torch.full((12, 12), -50.0)
    table[:, 2] = 50.0
    model = Table(table.tolist())
    loss = found.loss(model, found.collate([row(0, prompt=[1, 2], chosen=[2, 2], rejected=[3, 2])], pad_token_id=0))
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert model.table.grad is not None
    assert torch.isfinite(model.table.grad).all()
