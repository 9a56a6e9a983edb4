"""Labels of texts: what a row becomes, which labels there are, the loss, and a run from data to a merged model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from label_bases import tokenizer, write_bert, write_llama

import peftcli
from peftcli.data.config import DataConfig
from peftcli.data.parts import is_frame, keep_texts, texts, types
from peftcli.data.prepare import PreparedData, prepare
from peftcli.errors import DataError, RecipeError
from peftcli.jobs.evaluate import evaluate_adapter
from peftcli.jobs.generate import Request
from peftcli.jobs.merge import merge_adapter
from peftcli.jobs.opening import open_adapter
from peftcli.jobs.predict import predict_all
from peftcli.models.heads import MEASURED, SEVERAL, SINGLE, LabelHead
from peftcli.models.load import load_model
from peftcli.models.new_heads import new_head_keys
from peftcli.models.source import resolve_base
from peftcli.recipe import load_recipe
from peftcli.tasks.config import ClassificationConfig
from peftcli.tasks.labels.losses import LabelLoss
from peftcli.tasks.registry import task

TASK = task("sequence-classification")


def written(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def data_of(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> PreparedData:
    keys = {"validation": 0, "checks": {"duplicates": "off", "label-balance": "off"}, **keys}
    config = DataConfig(train=str(written(folder, rows)), **keys)
    return prepare(config, tokenizer=tokenizer(), folder=folder, seed=0, encoding=TASK.encoding)


def head_of(folder: Path, labels: list[Any], base: LabelHead | None = None, problem: str = "auto") -> LabelHead:
    data = data_of(folder, [{"text": f"row {i}", "label": label} for i, label in enumerate(labels)])
    found = TASK.with_options(ClassificationConfig(problem_type=problem)).head_for(data.train, None, base)  # type: ignore[arg-type]
    assert found is not None
    return found


# -- rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", [True, False], ids=["types are returned", "types are kept back"])
def test_a_pair_is_framed_as_the_tokenizer_itself_frames_it(tmp_path: Path, typed: bool) -> None:
    ours = tokenizer()
    # by its class: BERT's gives models the types, a generic one keeps back those that it frames a pair with
    ours.model_input_names = ["input_ids", "attention_mask", *(["token_type_ids"] if typed else [])]
    path = written(tmp_path, [{"text": "ab c", "text_pair": "de", "label": "x"}, {"text": "f", "label": "y"}])
    config = DataConfig(train=str(path), validation=0, checks={"duplicates": "off", "label-balance": "off"})
    data = prepare(config, tokenizer=ours, folder=tmp_path, seed=0, encoding=TASK.encoding)
    row = data.train[0]
    wanted = ours("ab c", "de")
    assert row.input_ids.tolist() == wanted["input_ids"]
    assert types(row.parts).tolist() == wanted.get("token_type_ids", [0] * len(row.input_ids))
    assert bool(types(row.parts).any()) == typed
    assert row.labels == ("x",)
    assert data.train.trained.tolist() == [1, 1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_pair_keeps_its_frame_and_loses_from_the_longer_text(tmp_path: Path, side: str) -> None:
    long, short = "abcdefghijkl", "xyz"
    rows = [{"text": long, "text_pair": short, "label": "x"}, {"text": "b", "label": "y"}]
    row = data_of(tmp_path, rows, max_length=10, truncation=side).train[0]
    wanted = tokenizer()(
        long, short, truncation="longest_first", max_length=10
    )["input_ids"]  # fmt: skip
    assert len(row.input_ids) == 10
    assert texts(row.parts[~is_frame(row.parts)]).tolist() == [0] * 4 + [1] * 3
    if side == "right":
        assert row.input_ids.tolist() == wanted


def test_a_trained_text_is_cut_last() -> None:
    parts = np.array([0] * 6 + [4] * 3, dtype=np.int32)
    weights = np.array([0.0] * 6 + [1.0] * 3, dtype=np.float32)
    assert keep_texts(parts, weights, 5, "right").tolist() == [0, 1, 6, 7, 8]


# -- labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names", "problem"),
    [
        (["b", "a", "b"], ("a", "b"), SINGLE),
        ([10, 9, 10], ("9", "10"), SINGLE),
        ([True, False], ("0", "1"), SINGLE),
        ([["a", "b"], [], ["c"]], ("a", "b", "c"), SEVERAL),
        ([[1.0, 0.0], [0.0, 0.0]], ("LABEL_0", "LABEL_1"), SEVERAL),
        ([0.5, 2.0], ("LABEL_0",), MEASURED),
        ([[0.5, 2.0], [1.5, 0.0]], ("LABEL_0", "LABEL_1"), MEASURED),
    ],
)
def test_labels_are_told_from_the_rows(tmp_path: Path, labels: list[Any], names: tuple[str, ...], problem: str) -> None:
    head = head_of(tmp_path, labels)
    assert (head.names, head.problem) == (names, problem)


def test_labels_that_the_base_gives_already_keep_their_places(tmp_path: Path) -> None:
    base = LabelHead(("POSITIVE", "NEGATIVE", "NEUTRAL"))
    assert head_of(tmp_path, ["NEGATIVE", "POSITIVE"], base).names == base.names
    assert head_of(tmp_path, [0, 2], base).names == base.names
    assert head_of(tmp_path, ["good", "bad"], base).names == ("bad", "good")


@pytest.mark.parametrize(
    ("labels", "problem", "says"),
    [
        (["a", 1], "auto", "names in some rows and numbers in others"),
        (["a", "a"], "auto", "only the label 'a' occurs"),
        (["a", "b"], "regression", "regression learns numbers"),
        ([["a", "b"], ["a"]], "single_label_classification", "has 2 labels"),
        ([[0.5, 1.5], [0.5]], "regression", "equally many values"),
    ],
)
def test_labels_that_cannot_be_learned(tmp_path: Path, labels: list[Any], problem: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        head_of(tmp_path, labels, problem=problem)
    assert "rows.jsonl" in caught.value.render()


def test_a_label_of_validation_rows_alone_is_told_by_its_row(tmp_path: Path) -> None:
    held = written(tmp_path, [{"text": "q", "label": "a"}, {"text": "r", "label": "new"}], "held.jsonl")
    data = data_of(
        tmp_path, [{"text": "s", "label": "a"}, {"text": "t", "label": "b"}], validation=str(held)
    )  # fmt: skip
    with pytest.raises(DataError, match="the label 'new'") as caught:
        TASK.head_for(data.train, data.validation, None)
    assert "held.jsonl:2" in caught.value.render()


def test_held_out_rows_keep_the_proportions_of_the_labels(tmp_path: Path) -> None:
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    data = data_of(tmp_path, [{"text": f"r {i}", "label": x} for i, x in enumerate(labels)], validation=0.2)
    assert data.validation is not None
    held = [data.validation.labels(row)[0] for row in range(20)]
    assert [held.count(label) for label in "abc"] == [12, 6, 2]


def test_equal_texts_with_other_labels_are_other_data(tmp_path: Path) -> None:
    facts = [
        data_of(tmp_path, [{"text": "s", "label": one}, {"text": "t", "label": "b"}]).facts for one in ("a", "b")
    ]  # fmt: skip
    assert facts[0].train.stream_sha256 != facts[1].train.stream_sha256


# -- the loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_torchs(smoothing: float, weighted: bool) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 1, 3, 2, 0])
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0]) if weighted else None
    loss = LabelLoss(SINGLE, weights, smoothing)
    truth = torch.nn.functional.one_hot(labels, 4).float()
    found = loss.each(logits, truth).sum() / loss.weights(truth).sum()
    wanted = torch.nn.functional.cross_entropy(logits, labels, weights, label_smoothing=smoothing)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_focal_loss_is_its_equation() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    truth = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = LabelLoss(SINGLE, focal_gamma=2.0).each(probabilities.log(), truth)
    assert found.tolist() == pytest.approx([-(0.1**2) * np.log(0.9), -(0.6**2) * np.log(0.4)])
    two = LabelLoss(SEVERAL, focal_gamma=2.0).each(torch.logit(probabilities), truth)
    assert two[0].item() == pytest.approx(-(0.1**2) * np.log(0.9))


def test_balanced_weights_make_every_label_weigh_alike(tmp_path: Path) -> None:
    data = data_of(tmp_path, [{"text": f"r {i}", "label": "a" if i < 6 else "b"} for i in range(8)])
    found = TASK.with_options(ClassificationConfig(class_weights="balanced"))
    head = found.head_for(data.train, None, None)
    assert head is not None
    batch = found.with_head(head, data.train).collate(list(data.train), pad_token_id=0)
    assert batch["weights"].tolist() == pytest.approx([8 / 12] * 6 + [2.0] * 2)
    assert found.with_head(head, data.train).weigh(batch) == pytest.approx(8.0)
    with pytest.raises(RecipeError, match="`c`, which is no label"):
        TASK.with_options(ClassificationConfig(class_weights={"c": 2.0})).with_head(head, data.train)


@pytest.mark.parametrize(("problem", "labels"), [(SEVERAL, [["a"], [], ["a", "b"]]), (MEASURED, [0.5, -1.0, 2.0])])
def test_the_loss_is_that_of_transformers(tmp_path: Path, problem: str, labels: list[Any]) -> None:
    data = data_of(tmp_path, [{"text": "x" * (i + 2), "label": label} for i, label in enumerate(labels)])
    head = TASK.head_for(data.train, None, None)
    assert head is not None
    source = resolve_base(str(write_bert(tmp_path / "bert")), folder=tmp_path)
    model = load_model(source, auto_class=TASK.auto_class, head=head)
    found = TASK.with_head(head)
    batch = found.collate(list(data.train), pad_token_id=0)
    loss = found.loss(model, batch)
    labels_there = batch["truth"].squeeze(-1) if problem == MEASURED else batch["truth"]
    wanted = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels_there
    ).loss  # fmt: skip
    assert (loss.total / loss.weight).item() == pytest.approx(wanted.item(), abs=1e-6)


def test_a_decoder_is_judged_at_its_last_real_token(tmp_path: Path) -> None:
    """Also where the row itself ends with the token that fills, on whichever side it fills."""
    source = resolve_base(str(write_llama(tmp_path / "llama")), folder=tmp_path)
    head = LabelHead(("a", "b"), SINGLE, seed=1)
    model = load_model(source, auto_class=TASK.auto_class, head=head)
    model.config.pad_token_id = 3  # type: ignore[union-attr]
    ids, short = torch.tensor([5, 9, 14, 3]), torch.tensor([7, 8])
    hidden = model.model(input_ids=ids[None]).last_hidden_state[0, -1]  # type: ignore[operator, union-attr]
    wanted = model.score(hidden)  # type: ignore[operator]
    for side in ("right", "left"):
        room = [3, 3]
        filled = torch.tensor([[*short.tolist(), *room] if side == "right" else [*room, *short.tolist()]])
        mask = torch.tensor([[1, 1, 0, 0] if side == "right" else [0, 0, 1, 1]])
        batch = {
            "input_ids": torch.cat([ids[None], filled]), "attention_mask": torch.cat([torch.ones_like(ids)[None], mask])
        }  # fmt: skip
        found = TASK.with_head(head).logits(model, batch)
        alone = TASK.with_head(head).logits(
            model, {"input_ids": short[None], "attention_mask": torch.ones_like(short)[None]}
        )
        assert torch.allclose(found[0], wanted, atol=1e-6)
        assert torch.allclose(found[1], alone[0], atol=1e-5)


# -- a run -------------------------------------------------------------------------------------------------------

WORDS = {"pos": ("good", "goood"), "neg": ("bad", "baad")}


def run(folder: Path, write: Callable[[Path], Path], method: str, extra: str = "") -> tuple[Path, peftcli.RunRecord]:
    write(folder / "base")
    rows = [
        {"text": f"{words[i % 2]} {i}", "label": label} for i in range(24) for label, words in WORDS.items()
    ]  # fmt: skip
    written(folder, rows)
    recipe = folder / "labels.yaml"
    recipe.write_text(
        f"task: sequence-classification\nmodel: ./base\ndata: {{train: rows.jsonl, validation: 12, max_length: 32}}\n"
        f"method: {method}\ntraining: {{max_steps: 40, batch_size: 8, learning_rate: 0.01}}\n{extra}"
    )
    record = peftcli.train(recipe, output=folder / "run")
    return folder / "run", record


@pytest.mark.parametrize("write", [write_bert, write_llama])
def test_from_data_to_a_merged_model(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    folder, record = run(tmp_path, write, "{type: lora, r: 4}")
    tuned = record.evaluation.tuned
    assert tuned["eval_accuracy"] == 1.0
    assert record.parameters.trainable > 2 * 32
    again = evaluate_adapter(folder)
    assert again.evaluation.tuned == tuned
    assert again.evaluation.base == record.evaluation.base

    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert all(line["prediction"] == line["target"] and line["scores"][line["target"]] > 0.5 for line in lines)
    assert all(line["row"].rpartition("/")[2].startswith("rows.jsonl:") for line in lines)

    said = predict_all(open_adapter(folder), [Request({"text": "good 77"}, "here"), Request({"prompt": "bad"}, "x")])
    assert [each.tuned.label for each in said] == ["pos", "neg"]
    merge_adapter(folder, output=tmp_path / "merged")
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "merged"), device="cpu")
    found = pipe("good 77")[0]
    assert found["label"] == "pos"
    assert found["score"] == pytest.approx(said[0].tuned.scores["pos"], abs=1e-5)


def test_the_head_alone_is_a_method(tmp_path: Path) -> None:
    _, record = run(tmp_path, write_bert, "{type: freeze, num_layers: 0}")
    assert record.parameters.trainable == 2 * 32 + 2


def test_regression_leaves_out_what_has_no_meaning_for_values(tmp_path: Path) -> None:
    write_bert(tmp_path / "base")
    written(tmp_path, [{"text": "ab" * (i % 7 + 1), "text_pair": f"{i}", "label": float(i % 7)} for i in range(40)])
    recipe = tmp_path / "values.yaml"
    text = (
        "task: sequence-classification\nmodel: ./base\nmethod: lora\n"
        "data: {train: rows.jsonl, validation: 8, max_length: 48}\ntraining: {max_steps: 2, batch_size: 8}\n"
    )
    recipe.write_text(text)
    assert set(peftcli.train(recipe, output=tmp_path / "run").evaluation.tuned) == {"eval_loss"}
    recipe.write_text(text + "evaluation: {metrics: [pearson, mse, mae]}\n")
    tuned = peftcli.train(recipe, output=tmp_path / "two").evaluation.tuned
    assert tuned["eval_mse"] == pytest.approx(tuned["eval_loss"])
    recipe.write_text(text + "evaluation: {metrics: [mcc]}\n")
    with pytest.raises(RecipeError, match="no meaning for labels of the kind regression"):
        peftcli.train(recipe, output=tmp_path / "three")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("task: causal-lm\nclassification: {label_smoothing: 0.1}", "no meaning for `task: causal-lm`"),
        ("task: sequence-classification\nevaluation: {metrics: [bleu]}", "reads generations"),
        ("task: causal-lm\nevaluation: {metrics: [accuracy]}", "reads labels"),
        ("task: sequence-classification\nclassification: {problem_type: regression, focal_gamma: 2}", "no meaning for"),
        ("task: sequence-classification\nclassification: {focal_gamma: 2, label_smoothing: 0.1}", "opposite"),
    ],
)
def test_what_a_task_does_not_take_is_told_before_anything_runs(tmp_path: Path, lines: str, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"{lines}\nmodel: builtin:tiny\ndata: rows.jsonl\nmethod: lora\n")
    with pytest.raises(RecipeError, match=says):
        load_recipe(path, ())
    path.write_text(
        "task: sequence-classification\nmodel: x/y\ndata: {train: a, format: text}\nmethod: adaption_prompt\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ())
    assert "of the format text" in caught.value.render()
    assert "trains no head" in caught.value.render()


def test_a_head_of_other_labels_is_drawn_anew_and_again_the_same(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_labels=2
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "two")
    source = resolve_base(str(tmp_path / "two"), folder=tmp_path)
    heads = [
        load_model(source, auto_class=TASK.auto_class, head=LabelHead(("a", "b", "c"), SINGLE, seed=seed))
        for seed in (1, 1, 2)
    ]
    weights = [model.get_parameter("classifier.weight") for model in heads]
    assert weights[0].shape == (3, 32)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert new_head_keys(heads[0]) == ("classifier.bias", "classifier.weight")
    kept = load_model(source, auto_class=TASK.auto_class, head=LabelHead(("a", "b"), SINGLE, seed=1))
    assert new_head_keys(kept) == ()
