"""Metrics of labels against scikit-learn where it is installed, and against values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from peftcli.evaluation.registry import get_metric, metric_names, needs_of
from peftcli.evaluation.result import Table
from peftcli.models.heads import MEASURED, SEVERAL, SINGLE
from peftcli.tasks.labels.labelled import Labelled

NAMES = ("a", "b", "c", "d")


def labelled(scores: Any, truth: Any, problem: str = SINGLE, rows: Any = None) -> Labelled:
    scores, truth = np.asarray(scores, dtype=float), np.asarray(truth, dtype=float)
    rows = np.arange(len(scores)) if rows is None else np.asarray(rows)
    return Labelled(NAMES[: scores.shape[1]], problem, rows, scores, truth, int(rows.max()) + 1)


def value(name: str, found: Labelled) -> float:
    metric = get_metric(name)
    assert metric.labels is not None
    numbers = metric.labels(found)
    table = Table(metric, numbers, np.zeros(len(numbers)))
    low, high = table.interval()
    assert low <= high
    return table.value()


def drawn(problem: str, *, rows: int = 60, labels: int = 4) -> Labelled:
    draw = np.random.default_rng(5)
    if problem == MEASURED:
        truth = draw.normal(size=(rows, 1))
        return labelled(truth + draw.normal(size=(rows, 1)), truth, problem)
    if problem == SEVERAL:
        return labelled(draw.random((rows, labels)), draw.random((rows, labels)) > 0.6, problem)
    scores = draw.dirichlet(np.ones(labels), size=rows)
    # the last label is never true
    return labelled(scores, np.eye(labels)[draw.integers(0, labels - 1, rows)], problem)


def test_by_hand() -> None:
    """Three rows: `a` right, `b` said to be `a`, `c` right; `d` neither occurs nor is said."""
    found = labelled([[0.9, 0.1, 0, 0], [0.6, 0.4, 0, 0], [0, 0, 1, 0]], np.eye(4)[[0, 1, 2]])
    assert value("accuracy", found) == pytest.approx(2 / 3)
    assert value("f1_macro", found) == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert value("f1_micro", found) == pytest.approx(2 / 3)
    assert value("precision", found) == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert value("recall", found) == pytest.approx((1 + 0 + 1) / 3)
    assert value("calibration_error", found) == pytest.approx((0.1 + 0.6 + 0.0) / 3)


def test_words_count_in_their_rows() -> None:
    found = labelled(np.eye(2)[[0, 1, 1]], np.eye(2)[[0, 1, 0]], rows=[0, 0, 1])
    metric = get_metric("accuracy")
    assert metric.labels is not None
    assert metric.labels(found).tolist() == [[2.0, 2.0], [0.0, 1.0]]


def test_constant_answers_have_a_value() -> None:
    assert value("mcc", labelled(np.eye(2)[[0, 0]], np.eye(2)[[0, 1]])) == 0.0
    assert value("pearson", labelled([[1.0], [1.0]], [[0.0], [1.0]], MEASURED)) == 0.0


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        *((name, problem) for name in ("f1_macro", "f1_micro", "f1_weighted", "precision", "recall", "accuracy",
                                       "auroc", "average_precision") for problem in (SINGLE, SEVERAL)),
        ("mcc", SINGLE), ("mse", MEASURED), ("mae", MEASURED), ("pearson", MEASURED), ("spearman", MEASURED),
    ],
)  # fmt: skip
def test_as_scikit_learn_has_it(name: str, problem: str) -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="the extra `metrics` is not installed")
    stats = pytest.importorskip("scipy.stats")
    found = drawn(problem)
    said, truth = found.said, found.truth
    if problem == SINGLE:
        said, truth = said.argmax(axis=1), truth.argmax(axis=1)
    some = [label for label in range(found.truth.shape[1]) if 0 < found.truth[:, label].sum() < len(found.truth)]
    wanted = {
        "f1_macro": lambda: sklearn.f1_score(truth, said, average="macro", zero_division=0),
        "f1_micro": lambda: sklearn.f1_score(truth, said, average="micro"),
        "f1_weighted": lambda: sklearn.f1_score(truth, said, average="weighted", zero_division=0),
        "precision": lambda: sklearn.precision_score(truth, said, average="macro", zero_division=0),
        "recall": lambda: sklearn.recall_score(truth, said, average="macro", zero_division=0),
        "accuracy": lambda: sklearn.accuracy_score(truth, said),
        "mcc": lambda: sklearn.matthews_corrcoef(truth, said),
        "auroc": lambda: sklearn.roc_auc_score(found.truth[:, some], found.scores[:, some], average="macro"),
        "average_precision": lambda: sklearn.average_precision_score(found.truth[:, some], found.scores[:, some]),
        "mse": lambda: sklearn.mean_squared_error(truth, said),
        "mae": lambda: sklearn.mean_absolute_error(truth, said),
        "pearson": lambda: stats.pearsonr(truth[:, 0], said[:, 0]).statistic,
        "spearman": lambda: stats.spearmanr(truth[:, 0], said[:, 0]).statistic,
    }
    assert value(name, found) == pytest.approx(float(wanted[name]()), abs=1e-12)


def test_what_a_metric_looks_at_is_known_without_importing_it() -> None:
    assert {name: needs_of(name) for name in metric_names()} == {
        name: get_metric(name).needs for name in metric_names()
    }
