"""Writes `losses.json`: losses and gradients of TRL's own trainers on fixed rows. Run it where trl 1.16 is installed.

The model is a table of next-token logits, so that a gradient is a table too and nothing but the loss is compared. The
trainers are made without their constructors, and their loss functions called as training calls them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor, nn
from trl import DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

VOCABULARY = 12
# prompt, chosen, rejected
PAIRS = [
    ([1, 4, 5], [6, 7, 2], [8, 2]),
    ([1, 9], [10, 11, 3, 4, 2], [5, 5, 6, 7, 8, 2]),
    ([1, 3, 3, 8], [9, 2], [10, 4, 11, 2]),
]
# prompt, answer, verdict, the answer to another prompt
VERDICTS = [
    ([1, 4, 5], [6, 7, 2], True, [10, 11, 2]),
    ([1, 9], [10, 11, 3, 2], False, [9, 2]),
    ([1, 3, 3, 8], [9, 2], True, [6, 7, 2]),
    ([1, 7], [5, 6, 2], False, [8, 8, 4, 2]),
]
SCORES = [(0.3, -0.5), (1.2, 1.9), (-0.1, 0.4)]


class Table(nn.Module):
    """A language model of which each token says the next."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())
        self.config = SimpleNamespace(is_encoder_decoder=False)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> SimpleNamespace:
        logits = self.table[input_ids]
        if labels is None:
            return SimpleNamespace(logits=logits)
        # what the fused head of the newer trainers answers with, of the positions that predict
        wanted = labels[:, 1:]
        found = logits[:, :-1].log_softmax(-1).gather(2, wanted.clamp(min=0)[..., None]).squeeze(2)
        zero = torch.zeros_like(found)
        return SimpleNamespace(
            log_probs=torch.where(wanted == -100, zero, found), entropy=zero, mean_logits=zero, is_top1=zero.bool()
        )


def padded(rows: list[list[int]], fill: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


def sequences(answers: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    return {
        "input_ids": padded([[*prompt, *answer] for prompt, answer in answers], 0),
        "attention_mask": padded([[1] * (len(prompt) + len(answer)) for prompt, answer in answers], 0),
        "completion_mask": padded([[0] * len(prompt) + [1] * len(answer) for prompt, answer in answers], 0),
    }


def log_probabilities(model: Table, inputs: dict[str, Tensor]) -> Tensor:
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    return model(inputs["input_ids"], labels=labels).log_probs.sum(1).detach()


def bare(kind: type, **fields: Any) -> Any:
    found = object.__new__(kind)
    same = lambda value: value  # noqa: E731
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same)
    defaults = {
        "accelerator": accelerator, "aux_loss_enabled": False, "_metrics": {"train": defaultdict(list)},
        "model": SimpleNamespace(training=True), "_total_train_tokens": 0, "_tp_size": 1, "label_smoothing": 0.0,
        "is_encoder_decoder": False, "pad_token_id": 0, "padding_value": 0,
    }  # fmt: skip
    for name, value in {**defaults, **fields}.items():
        found.__dict__[name] = value
    return found


def dpo(model: Table, start: Table, loss: str, **fields: Any) -> Tensor:
    inputs = sequences([(p, c) for p, c, _ in PAIRS] + [(p, r) for p, _, r in PAIRS])
    known = log_probabilities(start, inputs).chunk(2)
    trainer = bare(
        DPOTrainer, precompute_ref_logps=True, ld_alpha=None, f_divergence_type="reverse_kl", use_weighting=False,
        **{"loss_types": [loss], "loss_weights": [1.0], "beta": 0.1, **fields},
    )  # fmt: skip
    batch = {**inputs, "ref_chosen_logps": known[0], "ref_rejected_logps": known[1]}
    return trainer._compute_loss(model, batch, False)


def kto(model: Table, start: Table, loss: str) -> Tensor:
    inputs = sequences([(p, a) for p, a, _, _ in VERDICTS])
    other = sequences([(p, o) for p, _, _, o in VERDICTS])
    trainer = bare(
        KTOTrainer, precompute_ref_logps=True, calculate_KL=loss == "kto", loss_type=loss, beta=0.1, desirable_weight=1.0,
        undesirable_weight=1.0,
    )  # fmt: skip
    batch = {
        **inputs, **{f"KL_{name}": value for name, value in other.items()},
        "label": torch.tensor([verdict for _, _, verdict, _ in VERDICTS]),
        "ref_logps": log_probabilities(start, inputs), "ref_KL_logps": log_probabilities(start, other),
    }  # fmt: skip
    return trainer._compute_loss(model, batch, False)


def without_reference(kind: type, model: Table, **fields: Any) -> Tensor:
    trainer = bare(kind, **{"beta": 0.1, **fields})
    batch = {}
    for name, answers in (("chosen", [(p, c) for p, c, _ in PAIRS]), ("rejected", [(p, r) for p, _, r in PAIRS])):
        found = sequences(answers)
        labels = found["input_ids"].masked_fill(found["completion_mask"] == 0, -100)
        batch |= {f"{name}_input_ids": found["input_ids"], f"{name}_attention_mask": found["attention_mask"],
                  f"{name}_labels": labels}  # fmt: skip
    return trainer.get_batch_loss_metrics(model, batch)[0]


def reward(coefficient: float) -> dict[str, Any]:
    scores = nn.Parameter(torch.tensor(SCORES, dtype=torch.float32))
    trainer = bare(RewardTrainer, args=SimpleNamespace(center_rewards_coefficient=coefficient or None))
    model = lambda **_: SimpleNamespace(logits=scores.T.reshape(-1, 1))  # noqa: E731
    loss = trainer.compute_loss(model, {"attention_mask": torch.ones(6, 1)})
    loss.backward()
    return {"loss": float(loss.detach()), "gradient": scores.grad.tolist()}


def main() -> None:
    torch.manual_seed(7)
    tables = [torch.randn(VOCABULARY, VOCABULARY) for _ in range(2)]
    # the second start finds the answers so unlikely that the model has drifted from it
    start, far = Table(tables[1]), Table(3.0 * tables[1])
    cpo = {"loss_type": "sigmoid", "cpo_alpha": 1.0, "simpo_gamma": 0.5, "alpha": 0.0}
    cases: dict[str, tuple[dict[str, Any], Any]] = {
        "dpo": ({"loss": "dpo"}, lambda m: dpo(m, start, "sigmoid")),
        "dpo_strong": ({"loss": "dpo", "beta": 0.7}, lambda m: dpo(m, start, "sigmoid", beta=0.7)),
        "dpo_by_token": ({"loss": "dpo", "length_normalise": True}, lambda m: dpo(m, start, "sigmoid_norm")),
        "dpo_and_sft": (
            {"loss": "dpo", "sft_weight": 0.5},
            lambda m: dpo(m, start, "", loss_types=["sigmoid", "sft"], loss_weights=[1.0, 0.5]),
        ),
        "ipo": ({"loss": "ipo"}, lambda m: dpo(m, start, "ipo")),
        "hinge": ({"loss": "hinge"}, lambda m: dpo(m, start, "hinge")),
        "robust": (
            {"loss": "robust", "label_smoothing": 0.2}, lambda m: dpo(m, start, "robust", label_smoothing=0.2),
        ),
        "apo_zero": ({"loss": "apo_zero"}, lambda m: dpo(m, start, "apo_zero")),
        "apo_down": ({"loss": "apo_down"}, lambda m: dpo(m, start, "apo_down")),
        "kto": ({"loss": "kto"}, lambda m: kto(m, start, "kto")),
        "kto_drifted": ({"loss": "kto"}, lambda m: kto(m, far, "kto")),
        "apo_zero_verdicts": ({"loss": "apo_zero"}, lambda m: kto(m, start, "apo_zero_unpaired")),
        "cpo": ({"loss": "cpo"}, lambda m: without_reference(CPOTrainer, m, **cpo)),
        "cpo_smoothed": (
            {"loss": "cpo", "label_smoothing": 0.1, "sft_weight": 0.3},
            lambda m: without_reference(CPOTrainer, m, **{**cpo, "label_smoothing": 0.1, "cpo_alpha": 0.3}),
        ),
        "simpo": (
            {"loss": "simpo", "beta": 2.0, "simpo_gamma": 1.1},
            lambda m: without_reference(
                CPOTrainer, m, **{**cpo, "loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.1}
            ),
        ),
        "orpo": ({"loss": "orpo", "beta": 0.3}, lambda m: without_reference(ORPOTrainer, m, beta=0.3)),
    }  # fmt: skip
    found = {}
    for name, (settings, compute) in cases.items():
        model = Table(tables[0])
        loss = compute(model)
        loss.backward()
        found[name] = {"settings": settings, "loss": float(loss.detach()), "gradient": model.table.grad.tolist()}
    document = {
        "trl": trl.__version__, "torch": torch.__version__, "table": tables[0].tolist(), "start": tables[1].tolist(),
        "far": (3.0 * tables[1]).tolist(),
        "pairs": PAIRS, "verdicts": VERDICTS, "losses": found, "scores": SCORES,
        "rewards": {str(value): reward(value) for value in (0.0, 0.01, 0.5)},
    }  # fmt: skip
    Path(__file__).with_name("losses.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
    print({name: each["loss"] for name, each in found.items()}, document["rewards"])


if __name__ == "__main__":
    main()
