"""A metric of another package that is better when lower: the best adapter, the stop and the report follow its facts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import peftcli
from peftcli.evaluation import registry
from peftcli.evaluation.metric import Metric
from peftcli.reports.folder import read_run
from peftcli.reports.scores import scores

RECIPE = """\
model: builtin:tiny
data: {train: {path: builtin:support, rows: 40}, validation: 8, max_length: 192}
method: {type: lora, r: 4}
training:
  max_steps: 12
  batch_size: 4
  learning_rate: 5e-3
  early_stopping: {metric: eval_slips, patience: 2}
evaluation: {metrics: [slips], every: 2, samples: 0}
checkpoint: {every: 2, keep: 10, best: eval_slips}
generation: {max_new_tokens: 4}
threads: 1
"""
COUNTS = iter(())


def rows(answers: object) -> np.ndarray:
    """As many slips as the test has put down for this evaluation, whatever was answered."""
    return np.array([[next(COUNTS), 1.0] for _ in answers], dtype=np.float64)  # type: ignore[attr-defined]


def value(totals: np.ndarray) -> np.ndarray:
    return totals[..., 0] / totals[..., 1]


@pytest.fixture
def slips(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = ModuleType("peft_slips")
    module.METRIC = Metric(better="lower", answers=rows, value=value, unit="slips")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "peft_slips", module)
    point = metadata.EntryPoint("slips", "peft_slips:METRIC", registry.ENTRY_POINT_GROUP)
    real = metadata.entry_points
    monkeypatch.setattr(
        registry.metadata,
        "entry_points",
        lambda **query: [point] if query == {"group": registry.ENTRY_POINT_GROUP} else real(**query),
    )
    registry._outside_metrics.cache_clear()
    registry.metric_names.cache_clear()
    yield
    monkeypatch.undo()
    registry._outside_metrics.cache_clear()
    registry.metric_names.cache_clear()


def test_lower_is_better_everywhere(slips: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_evaluation = [5.0, 4.0, 2.0, 3.0, 6.0]  # of steps 0, 2, 4, ...: the best at 4, then two worse ones

    def counts() -> Iterator[float]:
        for slips_of_rows in by_evaluation:
            yield from [slips_of_rows] * 8
        # the best adapter is scored once more, with samples
        while True:
            yield 2.0

    monkeypatch.setattr(sys.modules[__name__], "COUNTS", counts())
    (tmp_path / "r.yaml").write_text(RECIPE)
    record = peftcli.train(tmp_path / "r.yaml", output=tmp_path / "run")
    assert record.adapter_step == 4
    assert record.steps == 8, "it stops after two evaluations that are worse"
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["eval_slips"] for line in logged if line["event"] == "eval"][:5] == by_evaluation[:5]
    (score,) = (score for score in scores(read_run(tmp_path / "run").record) if score.metric == "eval_slips")
    assert score.direction == "lower is better"
    assert score.relation == "better"
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert 'class="relation better"' in page
    assert 'class="relation worse"' not in page.partition("eval_slips")[2].partition("</tr>")[0]
