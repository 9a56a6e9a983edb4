"""`peft resume` of a whole run equals the run that nothing stopped: methods, optimizers, accumulation, evaluation,
streaming and gradient checkpointing together, stopped at three points each.

By default three of the configurations, each stopped once; marked slow is every one.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from whole_run import Child, adapter_bytes, at_step, in_a_fork, losses, send

STEPS = 4
STOPS = (1, 2, 3)
RECIPE = """
model: builtin:tiny
data: DATA
method: METHOD
training: {max_steps: 4, batch_size: 4, learning_rate: 2e-3, SETTINGS}
evaluation: EVALUATION
checkpoint: {every: null, keep: 9}
threads: 1
"""
METHODS = {
    "lora": "{type: lora, r: 2, lora_dropout: 0.2, target_modules: [q_proj, v_proj]}",
    "dora": "{type: dora, r: 2, target_modules: [q_proj]}",
    "adalora": "{type: adalora, init_r: 4, target_r: 2, target_modules: [q_proj, v_proj]}",
    "bottleneck": "{type: bottleneck, reduction_factor: 32}",
    "prompt_tuning": "{type: prompt_tuning, num_virtual_tokens: 2}",
    "p_tuning": "{type: p_tuning, num_virtual_tokens: 2, encoder_hidden_size: 8}",
    "bitfit": "bitfit",
    "reft": "reft",
}
SETTINGS = {
    "adamw, evaluation": ("optimizer: adamw, micro_batch_size: 2", 2, False),
    "adamw 4x1, streaming": ("optimizer: adamw, micro_batch_size: 1", None, True),
    "momentum, streaming, evaluation": ("optimizer: {type: sgd, momentum: 0.9}, micro_batch_size: 4", 1, True),
    "adafactor, streaming": ("optimizer: adafactor, micro_batch_size: 2, scheduler: wsd", None, True),
    "lion 4x1, evaluation": ("optimizer: lion, micro_batch_size: 1, early_stopping: {patience: 9}", 1, False),
    "muon, restarts": ("optimizer: muon, micro_batch_size: 4, scheduler: cosine_with_restarts", 3, False),
    "adamw, checkpointing": ("optimizer: adamw, micro_batch_size: 2, gradient_checkpointing: true", 3, False),
    "lion, checkpointing, streaming": ("optimizer: lion, micro_batch_size: 4, gradient_checkpointing: 2", 2, True),
}
EVERY = [(method, setting) for method in METHODS for setting in SETTINGS]
# of every way to come by rows, gradients and rates one; a dozen more, of the loop alone, are in tests/training
DEFAULT = [
    ("adalora", "momentum, streaming, evaluation"),
    ("bitfit", "adamw, evaluation"),
    ("reft", "muon, restarts"),
]
pytestmark = pytest.mark.usefixtures("warm")
Record = Callable[[str, object], None]


def recipe_of(folder: Path, method: str, setting: str) -> Path:
    further, every, streaming = SETTINGS[setting]
    (folder / "rows.jsonl").write_text(
        "".join(f'{{"prompt": "order {n}", "completion": " it is {n * 7}"}}\n' for n in range(14)), encoding="utf-8"
    )
    (folder / "held-out.jsonl").write_text('{"prompt": "order 99", "completion": " it is 693"}\n' * 2, encoding="utf-8")
    data = f"{{train: rows.jsonl, validation: held-out.jsonl, max_length: 64, streaming: {str(streaming).lower()}}}"
    text = RECIPE.replace("DATA", data).replace("METHOD", METHODS[method]).replace("SETTINGS", further)
    text = text.replace("EVALUATION", f"{{every: {every or 'null'}, samples: 0}}")
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def evaluations(folder: Path) -> dict[int, float]:
    """Of each step; after a resume the last value counts."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["eval_loss"] for line in lines if line["event"] == "eval"}


def require_exact(place: Path, method: str, setting: str, stops: tuple[int, ...] = STOPS) -> None:
    recipe, whole = recipe_of(place, method, setting), place / "whole"
    code, text = in_a_fork(["train", str(recipe), "--output", str(whole), "--quiet"])
    assert code == 0, text
    assert len(losses(whole)) == STEPS
    for stop in stops:
        folder = place / f"stopped-{stop}"
        arguments = ["train", str(recipe), "--output", str(folder), "--quiet"]
        code, text = Child(arguments, arm=at_step(stop, send(signal.SIGTERM))).end()
        assert code == 143, text
        code, text = in_a_fork(["resume", str(folder), "--quiet"])
        assert code == 0, text
        assert losses(folder) == losses(whole), stop
        assert evaluations(folder) == evaluations(whole), stop
        assert adapter_bytes(folder) == adapter_bytes(whole), stop


@pytest.mark.parametrize(("method", "setting"), DEFAULT, ids=lambda name: name)
def test_some_configurations(tmp_path: Path, method: str, setting: str) -> None:
    require_exact(tmp_path, method, setting, stops=(2,))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_configuration(tmp_path: Path, method: str, record_property: Record) -> None:
    for number, setting in enumerate(SETTINGS):
        (tmp_path / str(number)).mkdir()
        require_exact(tmp_path / str(number), method, setting)
    record_property("count", f"resume of {method}: {len(SETTINGS)} configurations, {len(STOPS)} stops each, exact")


def test_there_are_sixty() -> None:
    assert len(EVERY) >= 60
    assert {*DEFAULT} <= {*EVERY}
