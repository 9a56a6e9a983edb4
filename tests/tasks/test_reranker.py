"""A reranker: a task of labels on pairs of texts with one value, here whether a passage is of use."""

from __future__ import annotations

import json
from pathlib import Path

from label_bases import write_bert

import peftcli
from peftcli.jobs.generate import Request
from peftcli.jobs.merge import merge_adapter
from peftcli.jobs.opening import open_adapter
from peftcli.jobs.predict import predict_all

WORDS = ("cat", "dog", "owl", "bee")
PASSAGES = ("good cat", "xxx cat", "xxx dog", "xxx owl")


def test_a_passage_of_use_stands_first(tmp_path: Path) -> None:
    write_bert(tmp_path / "base")
    rows = [
        {"text": f"{start} {query}", "text_pair": f"{kind} {word}", "label": float(kind == "good")}
        for start in ("a", "the", "one")
        for query in WORDS
        for word in WORDS
        for kind in ("good", "xxx")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "rank.yaml"
    recipe.write_text(
        "task: sequence-classification\nmodel: ./base\ndata: {train: rows.jsonl, validation: 12, "
        "checks: {duplicates: off, leakage: off}}\n"
        "method: full\ntraining: {max_steps: 30, batch_size: 24, learning_rate: 0.005}\n"
        "evaluation: {every: null, metrics: [mse, spearman]}\n"
    )
    evaluation = peftcli.train(recipe, output=tmp_path / "run").evaluation
    assert evaluation.tuned["eval_mse"] < 0.5 * evaluation.base["eval_mse"]
    merge_adapter(tmp_path / "run", output=tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert len(config["id2label"]) == 1

    asked = [Request({"text": "a cat", "text_pair": passage}, "here") for passage in PASSAGES]
    said = [float(each.tuned.label) for each in predict_all(open_adapter(tmp_path / "run", device="cpu"), asked)]
    assert said.index(max(said)) == 0
