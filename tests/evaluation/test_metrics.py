from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from peftcli.errors import DeviceError, RecipeError
from peftcli.evaluation import registry
from peftcli.evaluation.metric import AnswerPair, Metric, ratio
from peftcli.evaluation.registry import get_metric, load_metrics, metric_names, resolve_metric_name

OURS = (
    "answer_match",
    "bleu",
    "chrf",
    "exact_match",
    "f1",
    "json_fields",
    "json_valid",
    "loss",
    "perplexity",
    "rouge",
    "token_accuracy",
)
PAIRS = [
    AnswerPair("the cat sat on the mat", "the cat sat on a mat"),
    AnswerPair("", "nothing was said"),
    AnswerPair("Grüße aus Köln!", "Grüße aus Köln!"),
    AnswerPair("completely different words here", "no overlap whatsoever, friend"),
]


@dataclass
class Losses:
    sums: np.ndarray
    weights: np.ndarray
    correct: np.ndarray
    targets: np.ndarray


LOSSES = Losses(np.array([6.0, 1.0]), np.array([3.0, 1.0]), np.array([1.0, 1.0]), np.array([4.0, 1.0]))


def value(name: str, *answers: AnswerPair) -> float:
    metric = get_metric(name)
    assert metric.answers is not None
    return float(metric.value(metric.answers(answers).sum(axis=0)))


def of_losses(name: str) -> float:
    metric = get_metric(name)
    assert metric.losses is not None
    return float(metric.value(metric.losses(LOSSES).sum(axis=0)))


def test_every_file_is_a_metric() -> None:
    assert set(OURS) <= set(metric_names())
    assert all(isinstance(get_metric(name), Metric) for name in metric_names())
    for name in OURS:
        metric = get_metric(name)
        assert metric.better == ("lower" if name in ("loss", "perplexity") else "higher")
        assert metric.needs == ("losses" if name in ("loss", "perplexity", "token_accuracy") else "generations")


def test_losses_are_weighted_by_token() -> None:
    assert of_losses("loss") == 7.0 / 4.0
    assert of_losses("perplexity") == pytest.approx(math.exp(7.0 / 4.0))
    assert of_losses("token_accuracy") == 2.0 / 5.0


def test_exact_match_forgives_white_space_at_the_ends_only() -> None:
    assert value(
        "exact_match", AnswerPair(" yes\n", "yes"), AnswerPair("Yes", "yes"), AnswerPair("y es", "yes")
    ) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": [1, null]}', True),
        (" [] \n", True),
        ('"x"', True),
        ("NaN", False),
        ('{"a": 1} and more', False),
        ("{'a': 1}", False),
        ("", False),
        ("[" * 100_000, False),
    ],
)
def test_json_valid(text: str, valid: bool) -> None:
    assert value("json_valid", AnswerPair(text, "")) == float(valid)


@pytest.mark.parametrize(
    ("said", "wanted", "right"),
    [
        ("so she has 12.\n#### 12", "3 * 4 = 12\n#### 12", True),
        ("the answer is $1,234.00.", "#### 1234", True),
        ("First 5, then 7", "#### 7", True),
        ("First 7, then 5", "#### 7", False),
        ("#### 7 of 9", "#### 7", True),
        ("#### 3\n#### 4", "#### 4", True),
        ("about -3", "#### 3", False),
        ("-3", "#### -3", True),
        (".5", "0.50", True),
        ("from 9 to 12-3", "#### 3", True),
        ("no idea", "#### 3", False),
        ("####", "#### 3", False),
        ("no idea", "none either", False),
    ],
)
def test_answer_match(said: str, wanted: str, right: bool) -> None:
    assert value("answer_match", AnswerPair(said, wanted)) == float(right)


@pytest.mark.parametrize(
    ("said", "share"),
    [
        ('{"a": 1, "b": {"c": [1, 2]}}', 1.0),
        ('{"b": {"c": [1, 2]}, "a": 1.0}', 1.0),
        ('{"a": 2, "b": {"c": [1, 2]}}', 2 / 3),
        ('{"a": true, "b": {"c": [1, 2]}}', 2 / 3),
        ('{"a": 1}', 1 / 3),
        ('{"a": 1, "b": {"c": [1, 2]}, "d": null}', 3 / 4),
        ('{"a": "1", "b": {"c": []}}', 0.0),
        ("a: 1", 0.0),
        ("", 0.0),
    ],
)
def test_json_fields(said: str, share: float) -> None:
    assert value("json_fields", AnswerPair(said, '{"a": 1, "b": {"c": [1, 2]}}')) == pytest.approx(share)


@pytest.mark.parametrize(
    ("prediction", "reference", "wanted"),
    [
        ("the cat", "The cat!", 1.0),
        ("a a b", "a b b", 2 * 2 / 6),
        ("", "", 1.0),
        ("", "word", 0.0),
        ("...", "word", 0.0),
        ("мир труд", "мир", 2 / 3),
    ],
)
def test_f1_counts_shared_words(prediction: str, reference: str, wanted: float) -> None:
    assert value("f1", AnswerPair(prediction, reference)) == pytest.approx(wanted)


def test_f1_is_the_mean_over_rows() -> None:
    assert value("f1", AnswerPair("a", "a"), AnswerPair("b b b b", "c")) == 0.5


def test_chrf_by_hand() -> None:
    assert value("chrf", AnswerPair("ab", "ab")) == pytest.approx(100.0)
    assert value("chrf", AnswerPair("", "ab")) == 0.0
    # 1-grams: 1 of 2 shared both ways; 2-grams: none; orders above 2 do not exist
    assert value("chrf", AnswerPair("ab", "ac")) == pytest.approx(25.0)


def test_corpus_scores_equal_the_packages() -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="the extra `metrics` is not installed")
    predictions, references = [pair.prediction for pair in PAIRS], [[pair.reference for pair in PAIRS]]
    assert value("bleu", *PAIRS) == pytest.approx(sacrebleu.corpus_bleu(predictions, references).score)
    assert value("chrf", *PAIRS) == pytest.approx(sacrebleu.corpus_chrf(predictions, references).score)


def test_rouge_is_the_mean_f_measure() -> None:
    pytest.importorskip("rouge_score", reason="the extra `metrics` is not installed")
    assert value("rouge", AnswerPair("a b c d", "a b x d"), AnswerPair("q", "z")) == pytest.approx(0.75 / 2)


@pytest.mark.parametrize("name", ["chrf", "exact_match", "f1", "json_valid"])
def test_numbers_of_rows_add_up(name: str) -> None:
    metric = get_metric(name)
    assert metric.answers is not None
    rows = metric.answers(PAIRS)
    alone = np.concatenate([metric.answers([pair]) for pair in PAIRS])
    np.testing.assert_array_equal(rows, alone)
    assert metric.answers([]).shape == (0, rows.shape[1])
    many = metric.value(np.stack([rows.sum(axis=0), rows[0]]))  # as the bootstrap calls it
    assert many.shape == (2,)
    assert many[0] == pytest.approx(value(name, *PAIRS))


@pytest.mark.parametrize("name", registry.metric_names())
def test_packages_are_known_without_importing_the_metric(name: str) -> None:
    assert registry.packages_of(name) == registry.get_metric(name).packages


def test_names_in_any_spelling() -> None:
    assert resolve_metric_name("Exact-Match") == resolve_metric_name("eval_exact_match") == "exact_match"
    assert registry.metric_facts("eval_loss").better == "lower"
    assert list(load_metrics(["f1", "exact-match"])) == ["loss", "f1", "exact_match"]


def test_unknown_and_planned_names() -> None:
    with pytest.raises(RecipeError, match="unknown metric `perplexty`") as caught:
        get_metric("perplexty")
    assert caught.value.fix == "did you mean `perplexity`?"


def test_missing_packages_are_named_together_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceError) as caught:
        load_metrics(["bleu", "rouge", "chrf"])
    assert [fault.message.split()[-1] for fault in caught.value.faults] == ["sacrebleu", "rouge_score"]
    assert all(fault.fix == "pip install 'peftcli[metrics]'" for fault in caught.value.faults)


def test_an_installed_package_adds_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    point = metadata.EntryPoint("word-count", "peftcli.evaluation.metrics.f1:METRIC", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [point])
    registry._outside_metrics.cache_clear()
    registry.metric_names.cache_clear()
    try:
        assert "word_count" in metric_names()
        assert get_metric("word-count") is get_metric("f1")
    finally:
        registry._outside_metrics.cache_clear()
        registry.metric_names.cache_clear()


def test_a_metric_reads_one_thing() -> None:
    with pytest.raises(ValueError, match="reads losses, answers, labels, preferences, likelihoods or vectors"):
        Metric(better="lower")
    assert np.isnan(ratio(np.zeros(2)))
