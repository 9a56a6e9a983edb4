"""Formats: what they are told by, what they become, and that the container does not matter."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftcli.data.config import DataConfig
from peftcli.data.format import find_format
from peftcli.data.prepare import prepare
from peftcli.data.rows import ChatRow, LabelRow, PairRow, PreferenceRow, TagRow, TextRow
from peftcli.errors import DataError, RecipeError

EXAMPLES: list[tuple[str, dict[str, Any], type]] = [
    ("text", {"text": "Once."}, TextRow),
    ("messages", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, ChatRow),
    ("sharegpt", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, ChatRow),
    ("instruction", {"instruction": "a", "input": "", "output": "b"}, ChatRow),
    ("classification", {"text": "a", "label": "x"}, LabelRow),
    ("token-classification", {"tokens": ["a", "b"], "tags": ["O", "B"]}, TagRow),
    ("seq2seq", {"source": "a", "target": "b"}, PairRow),
    ("preference", {"prompt": "a", "chosen": "b", "rejected": "c"}, PreferenceRow),
    ("preference", {"prompt": "a", "completion": "b", "label": True}, PreferenceRow),
]


@pytest.mark.parametrize(("name", "row", "kind"), EXAMPLES)
def test_each_format_is_told_by_its_columns(name: str, row: dict[str, Any], kind: type) -> None:
    found = find_format("auto", {}, row, "rows.jsonl:1")
    assert found.format.name == name
    assert "column" in found.why
    assert type(found.parse(row)) is kind


def test_prompt_completion_trains_the_completion_and_the_end(
    prepared: Any, trained_text: Any, chat_tokenizer: Any
) -> None:
    data = prepared([{"prompt": "what is it?", "completion": " the cat"}], format="segments")
    assert trained_text(data.train, 0, chat_tokenizer) == [" the cat</s>"]
    row = data.train[0]
    assert row.input_ids[0] == chat_tokenizer.bos_token_id
    # the tokens of the prompt are those that the prompt alone has at inference
    alone = chat_tokenizer("what is it?")["input_ids"]
    assert row.input_ids[: len(alone)].tolist() == alone


def test_a_prompt_that_ends_in_a_space_keeps_its_own_tokens(
    prepared: Any, trained_text: Any, chat_tokenizer: Any
) -> None:
    data = prepared([{"prompt": "the answer is ", "completion": "here"}], format="segments")
    alone = chat_tokenizer("the answer is ")["input_ids"]
    assert data.train[0].input_ids[: len(alone)].tolist() == alone
    assert trained_text(data.train, 0, chat_tokenizer) == ["here</s>"]


def test_columns_map_names(prepared: Any, trained_text: Any, chat_tokenizer: Any) -> None:
    rows = [{"question": "2 + 2?", "answer": " 4", "id": 7}]
    data = prepared(rows, columns={"prompt": "question", "completion": "answer"})
    assert trained_text(data.train, 0, chat_tokenizer) == [" 4<|im_end|>"]
    assert data.facts.train.sources[0].format == "prompt-completion"


def test_instruction_is_a_chat_under_a_template_and_headings_without(
    prepared: Any, trained_text: Any, chat_tokenizer: Any, plain_tokenizer: Any
) -> None:
    rows = [{"instruction": "Say it.", "input": "the cat", "output": "The cat."}]
    chats = prepared(rows)
    assert trained_text(chats.train, 0, chat_tokenizer) == ["The cat.<|im_end|>"]
    plain = prepared(rows, tokenizer=plain_tokenizer)
    text = plain_tokenizer.decode(plain.train[0].input_ids)
    assert text == "<s>### Instruction:\nSay it.\n\n### Input:\nthe cat\n\n### Response:\nThe cat.</s>"
    assert trained_text(plain.train, 0, plain_tokenizer) == ["The cat.</s>"]


def test_segments_keep_their_flags_and_weights(prepared: Any, chat_tokenizer: Any) -> None:
    pieces = [{"text": "Q: a", "train": False}, {"text": " b", "weight": 0.5}, {"text": " c", "train": True}]
    row = prepared([{"segments": pieces}]).train[0]
    by_weight = {weight: chat_tokenizer.decode(row.input_ids[row.weights == weight]) for weight in (0.5, 1.0)}
    assert by_weight == {0.5: " b", 1.0: " c</s>"}


def test_sharegpt_equals_messages_token_for_token(prepared: Any) -> None:
    shared = prepared([{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}])
    direct = prepared([{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}])
    assert shared.facts.train.stream_sha256 == direct.facts.train.stream_sha256


def test_message_weights_win_over_train_on(prepared: Any, chat: Any, trained_text: Any, chat_tokenizer: Any) -> None:
    row = chat("a", "first", "b", "second")
    row["messages"][1]["train"] = False
    row["messages"][3]["weight"] = 0.25
    data = prepared([row])
    assert trained_text(data.train, 0, chat_tokenizer) == ["second<|im_end|>"]
    assert set(data.train[0].weights.tolist()) == {0.0, 0.25}


@pytest.mark.parametrize(
    ("train_on", "wanted"),
    [
        ("completions", ["first<|im_end|>", "second<|im_end|>"]),
        ("last-turn", ["second<|im_end|>"]),
    ],
)
def test_train_on_decides_which_answers(
    prepared: Any, chat: Any, trained_text: Any, chat_tokenizer: Any, train_on: str, wanted: list[str]
) -> None:
    data = prepared([chat("a", "first", "b", "second")], train_on=train_on)
    assert trained_text(data.train, 0, chat_tokenizer) == wanted


def test_under_all_an_answer_of_weight_nought_is_left_out(
    prepared: Any, chat: Any, trained_text: Any, chat_tokenizer: Any
) -> None:
    row = chat("a", "first", "b", "second")
    row["messages"][1]["train"] = False
    shown = trained_text(prepared([row], train_on="all").train, 0, chat_tokenizer)
    assert "first<|im_end|>" not in "".join(shown)
    assert "second<|im_end|>" in shown[-1]
    assert len(shown) == 2


@pytest.mark.parametrize(
    ("train_on", "key", "value"),
    [
        ("completions", "train", True),
        ("completions", "weight", 0.5),
        ("all", "train", False),
        ("last-turn", "weight", 1),
    ],
)
def test_a_weight_of_a_question_is_not_silently_ignored(
    prepared: Any, chat: Any, train_on: str, key: str, value: Any
) -> None:
    row = chat("a", "first", "b", "second")
    row["messages"][2][key] = value
    with pytest.raises(DataError, match=r"message 3 \(user\)"):
        prepared([row], train_on=train_on)


def test_train_on_all_trains_every_token_but_the_first(prepared: Any, chat: Any) -> None:
    row = prepared([chat("a", "first")], train_on="all").train[0]
    assert row.weights.tolist() == [0.0] + [1.0] * (len(row.input_ids) - 1)


def test_text_is_joined_and_cut_without_losing_a_token(prepared: Any, chat_tokenizer: Any) -> None:
    rows = [{"text": f"the cat {number} sat on the mat"} for number in range(20)]
    data = prepared(rows, max_length=16)
    whole = [token for row in rows for token in [*chat_tokenizer(row["text"])["input_ids"], 2]]
    assert [token for row in data.train for token in row.input_ids.tolist()] == whole
    assert set(data.train.lengths[:-1].tolist()) == {16}
    assert data.train.trained.tolist() == [length - 1 for length in data.train.lengths]
    no_end = prepared(rows, max_length=16, append_eos=False)
    assert no_end.facts.train.tokens == len(whole) - 20


CONTAINERS = ["jsonl", "json", "csv", "tsv", "parquet", "arrow", "txt", "jsonl.gz", "txt.gz", "csv.zst", "saved"]


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_same_rows_give_the_same_tokens_in_every_container(
    tmp_path: Path, plain_tokenizer: Any, container: str
) -> None:
    texts = ["the cat sat", 'a "quoted", mat\twith ünïcode 🐈', "0 1 2"]
    path = _write(texts, tmp_path, container)
    data = prepare(DataConfig(train=str(path), validation=0), tokenizer=plain_tokenizer, folder=tmp_path, seed=0)
    text = plain_tokenizer.decode(data.train[0].input_ids, skip_special_tokens=False)
    assert text == "".join(f"<s>{each}</s>" for each in texts)


def _write(texts: list[str], folder: Path, container: str) -> Path:
    path = folder / f"rows.{container}"
    rows = [{"text": text} for text in texts]
    plain = container.removesuffix(".gz").removesuffix(".zst")
    if plain == "saved":
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(str(path))
        return path
    if plain in ("parquet", "arrow"):
        _write_columnar(rows, path, plain)
        return path
    if plain == "jsonl":
        body = "".join(json.dumps(row) + "\r\n" for row in rows)
    elif plain == "json":
        body = json.dumps(rows, indent=1)
    elif plain == "txt":
        body = "﻿" + "\n\n".join(texts)
    else:
        plain_path = folder / "plain"
        with plain_path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, ["text"], delimiter="\t" if plain == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
        body = plain_path.read_text(encoding="utf-8")
    return _compressed(body.encode(), path)


def _write_columnar(rows: list[dict[str, str]], path: Path, kind: str) -> None:
    import pyarrow
    import pyarrow.feather
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(rows)
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        pyarrow.feather.write_feather(table, str(path), compression="uncompressed")


def _compressed(body: bytes, path: Path) -> Path:
    if path.suffix == ".gz":
        body = gzip.compress(body)
    elif path.suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        body = zstandard.ZstdCompressor().compress(body)
    path.write_bytes(body)
    return path


def test_a_glob_reads_files_in_the_order_of_their_names(
    tmp_path: Path, plain_tokenizer: Any, write_rows: Callable[..., Path]
) -> None:
    write_rows([{"text": "b"}], "2.jsonl")
    write_rows([{"text": "a"}], "1.jsonl")
    data = prepare(DataConfig(train="*.jsonl", validation=0), tokenizer=plain_tokenizer, folder=tmp_path, seed=0)
    assert plain_tokenizer.decode(data.train[0].input_ids) == "<s>a</s><s>b</s>"


def test_a_folder_gives_the_files_of_its_split(
    tmp_path: Path, plain_tokenizer: Any, write_rows: Callable[..., Path]
) -> None:
    (tmp_path / "set").mkdir()
    write_rows([{"text": "a"}], "set/train-0.jsonl")
    write_rows([{"text": "b"}], "set/test-0.jsonl")
    data = prepare(
        DataConfig.model_validate({"train": "./set", "validation": {"path": "./set", "split": "test"}}),
        tokenizer=plain_tokenizer,
        folder=tmp_path,
        seed=0,
    )
    assert data.validation is not None
    texts = [plain_tokenizer.decode(store[0].input_ids) for store in (data.train, data.validation)]
    assert texts == ["<s>a</s>", "<s>b</s>"]


def test_a_format_without_a_task_is_refused_with_the_way_out(prepared: Any) -> None:
    with pytest.raises(RecipeError, match=r"its format: .*`text`"):
        prepared([{"text": "a", "label": "x"}])
    assert len(prepared([{"text": "a", "label": "x"}], format="text").train) == 1


def test_columns_that_no_format_has_are_a_recipe_error(prepared: Any) -> None:
    with pytest.raises(RecipeError, match="did you mean 'prompt'"):
        prepared([{"q": "a"}], columns={"promt": "q"})
    with pytest.raises(DataError, match="did you mean 'question'"):
        prepared([{"question": "a", "answer": "b"}], columns={"prompt": "qestion", "completion": "answer"})
