"""Tags of words: which token speaks for a word, CoNLL files, span F1, and a run that lines up with its words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from label_bases import tokenizer, write_bert, write_llama

import peftcli
from peftcli.data.config import DataConfig
from peftcli.data.encode.tagged import OUTSIDE, keep_words
from peftcli.data.prepare import PreparedData, prepare
from peftcli.errors import DataError
from peftcli.evaluation.metrics.span_f1 import spans
from peftcli.jobs.generate import Request
from peftcli.jobs.merge import merge_adapter
from peftcli.jobs.opening import open_adapter
from peftcli.jobs.predict import predict_all
from peftcli.tasks.registry import task

TASK = task("token-classification")
CONLL = "-DOCSTART- -X- O O\n\nAda NNP B-PER\nwrote VBD O\n\n# a comment\nin IN O\nKew NNP B-LOC\nGardens NNP I-LOC\n"


def data_of(path: Path, **keys: object) -> PreparedData:
    config = DataConfig(train=str(path), validation=0, **keys)  # type: ignore[arg-type]
    return prepare(config, tokenizer=tokenizer(), folder=path.parent, seed=0, encoding=TASK.encoding)


def test_conll_files_are_read_by_sentence(tmp_path: Path) -> None:
    path = tmp_path / "train.conll"
    path.write_text(CONLL)
    data = data_of(path)
    assert [data.train.labels(row) for row in range(2)] == [("B-PER", "O"), ("O", "B-LOC", "I-LOC")]
    assert [data.train.origin(row).line for row in range(2)] == [3, 7]
    head = TASK.head_for(data.train, None, None)
    assert head is not None
    assert head.names == ("B-LOC", "B-PER", "I-LOC", "O")
    path.write_text("Ada B-PER\nwrote\n")
    with pytest.raises(DataError, match="has no word and tag") as caught:
        data_of(path)
    assert "train.conll:2" in caught.value.render()


def test_the_first_token_of_each_word_speaks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"tokens": ["Ada", "(x)", "ok"], "tags": ["P", "Q", "O"]}\n')
    row = data_of(path).train[0]
    text = tokenizer().convert_ids_to_tokens(row.input_ids.tolist())
    assert text == ["[CLS]", "a", "##d", "##a", "[UNK]", "x", "[UNK]", "o", "##k", "[SEP]"]
    assert row.parts.tolist() == [OUTSIDE, 0, 0, 0, 1, 1, 1, 2, 2, OUTSIDE]
    assert row.weights.tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0, 0]


def test_a_cut_row_keeps_words_with_their_tags(tmp_path: Path) -> None:
    parts = np.array([OUTSIDE, 0, 0, 1, 2, 2, OUTSIDE])
    assert keep_words(parts, parts, 5, "right").tolist() == [0, 1, 2, 3, 6]
    assert keep_words(parts, parts, 5, "left").tolist() == [0, 3, 4, 5, 6]
    path = tmp_path / "rows.jsonl"
    path.write_text('{"tokens": ["ab", "c", "de"], "tags": ["x", "y", "z"]}\n')
    data = data_of(path, max_length=5, truncation="left", checks={"truncated-answers": "off"})
    head = TASK.head_for(data.train, None, None)
    assert head is not None
    batch = TASK.with_head(head).collate([data.train[0]], pad_token_id=0)
    assert [head.names[tag] for tag in batch["tags"][batch["weights"] > 0]] == ["y", "z"]


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-A I-A O B-B", {(0, 2, "A"), (3, 4, "B")}),
        ("I-A I-B B-B", {(0, 1, "A"), (1, 2, "B"), (2, 3, "B")}),
        ("S-A S-A B-C E-C I-C", {(0, 1, "A"), (1, 2, "A"), (2, 4, "C"), (4, 5, "C")}),
        ("NOUN NOUN VERB O", {(0, 2, "NOUN"), (2, 3, "VERB")}),
        ("O O", set()),
    ],
)
def test_spans(tags: str, found: set[tuple[int, int, str]]) -> None:
    assert spans(tags.split()) == found


def run(folder: Path, method: str = "{type: lora, r: 4}") -> peftcli.RunRecord:
    """Words of `z` are names, others are not."""
    draw = np.random.default_rng(0)
    lines = []
    for _ in range(60):
        words = [
            "z" * int(draw.integers(2, 4)) if draw.random() < 0.4 else "ab" for _ in range(int(draw.integers(2, 5)))
        ]
        lines.append(json.dumps({"tokens": words, "tags": ["B-N" if word[0] == "z" else "O" for word in words]}))
    (folder / "rows.jsonl").write_text("\n".join(dict.fromkeys(lines)))
    (folder / "tags.yaml").write_text(
        "task: token-classification\nmodel: ./base\ndata: {train: rows.jsonl, validation: 8, checks: {duplicates: off}}\n"
        f"method: {method}\ntraining: {{max_steps: 30, batch_size: 8, learning_rate: 0.01}}\n"
        "evaluation: {metrics: [accuracy, span_f1], every: null}\n"
    )
    return peftcli.train(folder / "tags.yaml", output=folder / "run")


@pytest.mark.parametrize("write", [write_bert, write_llama])
def test_predictions_line_up_with_words(tmp_path: Path, write: object) -> None:
    write(tmp_path / "base")  # type: ignore[operator]
    tuned = run(tmp_path).evaluation.tuned
    assert tuned["eval_accuracy"] == 1.0
    assert tuned["eval_span_f1"] == 1.0
    rows = [{"tokens": ["ab", "zz", "zzz", "ab"]}, {"text": "zz ab"}]
    said = predict_all(open_adapter(tmp_path / "run"), [Request(row, "here") for row in rows])
    assert [each.tuned.label for each in said] == [["O", "B-N", "B-N", "O"], ["B-N", "O"]]
    merge_adapter(tmp_path / "run", output=tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["id2label"] == {"0": "B-N", "1": "O"}
