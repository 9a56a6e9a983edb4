"""The automatic rate of a task that needs another than supervised training does, and what the plan says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftcli.planning.resolved import _learning_rate
from peftcli.recipe import load_recipe
from peftcli.tasks.registry import task, task_names

LORA = "model: builtin:tiny\ndata: builtin:preference\nmethod: lora\n"


@pytest.mark.parametrize(
    ("more", "share", "said"),
    [
        ("", 1.0, None),
        ("task: preference\n", 0.1, "times 0.1 for task preference"),
        ("task: reward\n", 1.0, None),
        ("task: preference\ntraining: {optimizer: lion}\n", 0.02, "times 0.1 for task preference; times 0.2 for lion"),
    ],
)
def test_the_rate_of_a_task(tmp_path: Path, more: str, share: float, said: str | None) -> None:
    (tmp_path / "r.yaml").write_text(LORA + more)
    rate, note = _learning_rate(load_recipe(tmp_path / "r.yaml"), 64)
    assert rate == pytest.approx(0.005 * share)
    assert (said or "lora: 0.005 at width 64") in note
    assert ("times" in note) == (said is not None)


def test_only_losses_of_tokens_are_told_in_nats_per_token() -> None:
    units = {name: task(name).loss_unit for name in task_names()}
    by_token = {name for name, unit in units.items() if unit == "nats per token"}
    assert by_token & {"causal-lm", "seq2seq-lm", "reward", "preference", "token-classification"} == {
        "causal-lm",
        "seq2seq-lm",
    }
    assert units["token-classification"] == "nats per word"
    assert units["reward"] == "nats per pair"
