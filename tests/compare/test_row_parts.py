"""Scores by class and source against counting by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.compare.figures import Variant
from peftcli.compare.members import Member
from peftcli.compare.row_parts import class_section
from peftcli.compare.session import Ended

STYLES = {"one": "run-0"}


def _variant(folder: Path, lines: list[dict[str, Any]], final: list[int] | None = None) -> Variant:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = Ended(Member("one", "lora", 1), folder, None, final=None if final is None else np.array(final))
    return Variant("one", "lora", (ended,), 0.0, 0.0, 0.0, None, 1, 1, 1, 1.0)


def _cells(section: Any) -> dict[str, float]:
    assert section is not None
    values = [cell.number.value for cell in section.facts.runs[0].cells]
    return {head.rpartition(" (")[0]: value for head, value in zip(section.facts.heads, values, strict=True)}


def _by_hand(truth: np.ndarray, said: np.ndarray, name: str) -> float:
    """The harmonic mean of precision and recall."""
    both = ((truth == name) & (said == name)).sum()
    precision, recall = both / (said == name).sum(), both / (truth == name).sum()
    return float(2 * precision * recall / (precision + recall))


def test_single_labels_are_scored_as_by_hand(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    names = ["cat", "dog", "eel"]
    truth, said = (draw.choice(names, 80) for _ in range(2))
    said[:40] = truth[:40]
    scores = dict.fromkeys(names, 0.3)
    lines = [{"target": str(a), "prediction": str(b), "scores": scores} for a, b in zip(truth, said, strict=True)]
    expected = {name: _by_hand(truth, said, name) for name in names}
    assert _cells(class_section([_variant(tmp_path, lines)], STYLES)) == pytest.approx(expected)
    # of the rows that tuning has not seen
    expected = {name: _by_hand(truth[30:], said[30:], name) for name in names}
    assert _cells(class_section([_variant(tmp_path, lines, list(range(30, 80)))], STYLES)) == pytest.approx(expected)


def test_several_labels_and_words(tmp_path: Path) -> None:
    scores = {"a": 0.9, "b": 0.2}
    several = [
        {"target": ["a", "b"], "prediction": ["a"], "scores": scores},
        {"target": [], "prediction": ["b"], "scores": scores},
        {"target": "a", "prediction": ["a"], "scores": scores},
    ]
    assert _cells(class_section([_variant(tmp_path / "several", several)], STYLES)) == {"a": 1.0, "b": 0.0}
    words = [
        {"target": ["B-PER", "O", "B-LOC"], "prediction": ["B-PER", "O", "O"], "scores": [0.9, 0.8, 0.7]},
        {"target": ["B-LOC", "O", "O"], "prediction": ["B-LOC", "O"], "scores": [0.9, 0.8]},
    ]
    found = _cells(class_section([_variant(tmp_path / "words", words)], STYLES))
    assert found == pytest.approx({"B-PER": 1.0, "B-LOC": 2 / 3})


def test_measured_values_and_texts_have_no_classes(tmp_path: Path) -> None:
    measured = [{"target": 1.5, "prediction": 1.2, "scores": None}] * 3
    assert class_section([_variant(tmp_path, measured)], STYLES) is None
    (tmp_path / "predictions.jsonl").unlink()
    assert class_section([_variant(tmp_path / "none", [])], STYLES) is None
