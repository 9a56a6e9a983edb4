"""What files hold beyond their rows: nulls that a column adds, objects that are a row, keys that stand twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftcli.data.config import DataConfig
from peftcli.data.prepare import PreparedData, prepare
from peftcli.errors import DataError

TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + (c.function.arguments | tojson) }}{% endfor %}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _row(name: str, **arguments: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    tool = {
        "type": "function",
        "function": {"name": name, "parameters": {"properties": {key: {"type": "string"} for key in arguments}}},
    }
    messages = [
        {"role": "user", "content": f"use {name}"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    return {"messages": messages, "tools": [tool]}


ROWS = [_row("weather", city="Oslo"), _row("time", zone="CET", day="Monday")]


def _prepare(path: Path, tokenizer: Any, **keys: Any) -> PreparedData:
    return prepare(
        DataConfig.model_validate({"train": path.name, **keys}), tokenizer=tokenizer, folder=path.parent, seed=0
    )


def _texts(data: PreparedData, tokenizer: Any) -> list[str]:
    order = sorted(range(len(data.train)), key=lambda row: data.train.origin(row).line)
    return [tokenizer.decode(data.train[row].input_ids) for row in order]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "saved"])
def test_columns_add_no_nulls(kind: str, tmp_path: Path, write_rows: Any, make_tokenizer: Any) -> None:
    import datasets
    import pyarrow
    import pyarrow.feather
    import pyarrow.parquet

    tokenizer = make_tokenizer(template=TEMPLATE)
    wanted = _texts(_prepare(write_rows(ROWS), tokenizer), tokenizer)
    table = pyarrow.Table.from_pylist(ROWS)
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif kind == "arrow":
        pyarrow.feather.write_feather(table, path)
    else:
        datasets.Dataset(table).save_to_disk(str(path))
    assert "null" in json.dumps(table.to_pylist())
    assert _texts(_prepare(path, tokenizer), tokenizer) == wanted


def test_json_columns_are_read_with_their_own_nulls(tmp_path: Path, make_tokenizer: Any) -> None:
    import datasets
    from datasets import Features, Value

    if not hasattr(datasets, "Json"):
        pytest.skip(f"datasets {datasets.__version__} has no columns of JSON")
    tokenizer = make_tokenizer(template=TEMPLATE)
    tools = [{"type": "function", "function": {"name": "weather", "default": None}}]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    features = Features({"messages": [{"role": Value("string"), "content": Value("string")}], "tools": datasets.Json()})
    data = datasets.Dataset.from_dict({"messages": [messages], "tools": [tools]}, features=features)
    data.save_to_disk(str(tmp_path / "saved"))
    data.to_parquet(str(tmp_path / "rows.parquet"))
    for name in ("saved", "rows.parquet"):
        (text,) = _texts(_prepare(tmp_path / name, tokenizer), tokenizer)
        assert '"default": null' in text, name


def test_maps_are_objects_and_binary_text_says_what_to_do(tmp_path: Path, make_tokenizer: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    kind = pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string()))
    turns = [[[("role", "user"), ("content", "a")], [("role", "assistant"), ("content", "b")]]]
    pyarrow.parquet.write_table(pyarrow.table({"messages": pyarrow.array(turns, kind)}), tmp_path / "m.parquet")
    tokenizer = make_tokenizer(template=TEMPLATE)
    assert _texts(_prepare(tmp_path / "m.parquet", tokenizer), tokenizer) == ["<|user|>a<|end|><|assistant|>b<|end|>"]
    pyarrow.parquet.write_table(pyarrow.table({"text": [b"some text"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="binary data, not text") as caught:
        _prepare(tmp_path / "b.parquet", tokenizer)
    assert "cast" in caught.value.render()


SEGMENTS = {"segments": [{"text": "context ", "train": False}, {"text": "answer", "train": True}]}


@pytest.mark.parametrize(
    ("document", "trained"),
    [
        (SEGMENTS, ["answer</s>"]),
        ([SEGMENTS], ["answer</s>"]),
        ({"data": [SEGMENTS]}, ["answer</s>"]),
        ({"conversations": [SEGMENTS]}, ["answer</s>"]),
    ],
    ids=["a row", "a list", "a list by name", "a list by the name of a part"],
)
def test_an_object_is_a_row_or_holds_a_list_of_rows(
    document: Any, trained: list[str], tmp_path: Path, plain_tokenizer: Any, trained_text: Any
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(document))
    assert trained_text(_prepare(path, plain_tokenizer).train, 0, plain_tokenizer) == trained


def test_one_conversation_in_a_json_file_is_a_row(tmp_path: Path, chat_tokenizer: Any, chat: Any) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(chat("a", "b"), indent=1))
    assert len(_prepare(path, chat_tokenizer).train) == 1


def test_messages_as_json_text_are_read(prepared: Any, chat: Any) -> None:
    row = chat("question", "answer")
    text = {"messages": json.dumps(row["messages"])}
    assert prepared([text]).train[0].input_ids.tolist() == prepared([row]).train[0].input_ids.tolist()


def test_turns_of_from_and_value_under_messages_get_the_line_that_reads_them(prepared: Any) -> None:
    row = {"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    with pytest.raises(DataError) as caught:
        prepared([row])
    assert "`format: sharegpt` and `columns: {conversations: messages}`" in caught.value.render()
    data = prepared([row], format="sharegpt", columns={"conversations": "messages"})
    assert len(data.train) == 1


def test_a_tree_of_messages_is_no_text(prepared: Any) -> None:
    row = {"message_id": "1", "parent_id": None, "role": "prompter", "text": "Hello?"}
    with pytest.raises(DataError, match="one message of a tree") as caught:
        prepared([row])
    assert "each path" in caught.value.render()
    assert len(prepared([row], format="text").train) == 1


def test_a_key_that_stands_twice_is_told(tmp_path: Path, plain_tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two", "more": {"a": 1, "a": 2}}\n{"text": "x", "text": "three"}\n')
    data = _prepare(path, plain_tokenizer)
    (finding,) = data.findings
    assert (finding.check, finding.severity, finding.row, finding.count) == ("duplicate-keys", "warn", 2, 2)
    assert "'a'" in finding.message


@pytest.mark.parametrize("adds_bos", [True, False])
def test_left_keeps_a_first_token_only_where_it_begins_texts(
    adds_bos: bool, make_tokenizer: Any, write_rows: Any
) -> None:
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    path = write_rows([{"prompt": "Zebra " * 30, "completion": "the cat sat"}])
    data = _prepare(path, tokenizer, truncation="left", max_length=12)
    ids = data.train[0].input_ids.tolist()
    assert len(ids) == 12
    assert (ids[0] == tokenizer.bos_token_id) is adds_bos
    text = "Zebra " * 30 + "the cat sat</s>"
    assert text.endswith(tokenizer.decode(ids[1:] if adds_bos else ids))
