"""Source and target: what a row becomes, the shift of the labels, and a run whose answers are generated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from label_bases import VOCABULARY, tokenizer

import peftcli
from peftcli.data.config import DataConfig
from peftcli.data.parts import is_frame, texts
from peftcli.data.prepare import PreparedData, prepare
from peftcli.errors import DataError
from peftcli.models.load import load_model
from peftcli.models.source import resolve_base
from peftcli.tasks.registry import task

TASK = task("seq2seq-lm")


def write_t5(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=3,
        decoder_start_token_id=0,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    found = tokenizer()
    found.eos_token = "[SEP]"
    found.save_pretrained(folder)
    return folder


def write_bart(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=2, eos_token_id=3, decoder_start_token_id=3, forced_eos_token_id=3, init_std=0.1,
    )  # fmt: skip
    transformers.BartForConditionalGeneration(config).save_pretrained(folder)
    found = tokenizer()
    found.eos_token = "[SEP]"
    found.save_pretrained(folder)
    return folder


def data_of(folder: Path, rows: list[dict[str, str]], **keys: object) -> PreparedData:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(train=str(path), validation=0, **keys)  # type: ignore[arg-type]
    return prepare(config, tokenizer=tokenizer(), folder=folder, seed=0, encoding=TASK.encoding)


@pytest.mark.parametrize("names", [("source", "target"), ("prompt", "completion")])
def test_source_and_target_are_framed_apart(tmp_path: Path, names: tuple[str, str]) -> None:
    row = data_of(tmp_path, [dict(zip(names, ("ab", "xy"), strict=True))]).train[0]
    text = tokenizer().convert_ids_to_tokens(row.input_ids.tolist())
    assert text == ["[CLS]", "a", "##b", "[SEP]", "[CLS]", "x", "##y", "[SEP]"]
    assert texts(row.parts).tolist() == [0] * 4 + [1] * 4
    assert is_frame(row.parts).tolist() == [True, False, False, True] * 2
    assert row.weights.tolist() == [0.0] * 4 + [1.0] * 4


def test_a_long_source_is_cut_and_its_target_is_not(tmp_path: Path) -> None:
    row = data_of(tmp_path, [{"source": "abcdefgh", "target": "xyz"}], max_length=10, truncation="right").train[0]
    assert texts(row.parts[~is_frame(row.parts)]).tolist() == [0] * 3 + [1] * 3


def test_rows_that_are_no_pair_are_told(tmp_path: Path) -> None:
    segments = {"segments": [{"text": "a", "label": True}, {"text": "b", "label": False}]}
    with pytest.raises(DataError, match="not one source and one target"):
        data_of(tmp_path, [segments])  # type: ignore[list-item]


@pytest.mark.parametrize("write", [write_t5, write_bart])
def test_the_loss_is_that_of_transformers(tmp_path: Path, write: object) -> None:
    source = resolve_base(str(write(tmp_path / "base")), folder=tmp_path)  # type: ignore[operator]
    model = load_model(source, auto_class=TASK.auto_class)
    rows = list(data_of(tmp_path, [{"source": "abc", "target": "x"}, {"source": "d", "target": "yyzz"}]).train)
    batch = TASK.collate(rows, pad_token_id=0)
    found = TASK.loss(model, batch)
    labels = batch["targets"].masked_fill(batch["weights"] == 0, -100)
    wanted = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    assert found.weight == 9
    assert (found.total / found.weight).item() == pytest.approx(wanted.item(), abs=1e-6)
    scored = TASK.score_rows(model, batch)
    assert scored.sums.sum() == pytest.approx(found.total.item(), abs=1e-5)
    assert scored.targets.tolist() == [3, 6]


@pytest.mark.parametrize("write", [write_t5, write_bart])
def test_a_run_learns_to_write(tmp_path: Path, write: object) -> None:
    write(tmp_path / "base")  # type: ignore[operator]
    rows = [{"source": f"{letter} {i}", "target": letter} for i in range(24) for letter in "ab"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "pairs.yaml"
    recipe.write_text(
        "task: seq2seq-lm\nmodel: ./base\ndata: {train: rows.jsonl, validation: 8, max_length: 32}\nmethod: full\n"
        "training: {max_steps: 60, batch_size: 8, learning_rate: 0.01}\n"
        "evaluation: {metrics: [exact_match], every: null}\n"
    )
    evaluation = peftcli.train(recipe, output=tmp_path / "run").evaluation
    assert evaluation.tuned["eval_loss"] < 0.5 * evaluation.base["eval_loss"]
    assert evaluation.tuned["eval_exact_match"] >= 0.75
