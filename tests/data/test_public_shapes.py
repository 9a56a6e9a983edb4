"""Rows as public data sets have them: read as they are, or refused with the line of the recipe that reads them.

The shapes are those of the data sets' cards; the words are our own.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftcli.data.faults import FaultLog, RowFault
from peftcli.data.format import find_format
from peftcli.data.readers.containers import read_file
from peftcli.data.rows import ChatRow, Row, TagRow
from peftcli.errors import DataError

CALLS = [{"name": "weather", "arguments": {"city": "Bern"}}]
TOOLS = [{"name": "weather", "description": "Of a city.", "parameters": {"city": {"type": "str"}}}]
TRANSCRIPT = (
    'USER: What is the rate?\n\n\nASSISTANT: <functioncall> {"name": "rate"} <|endoftext|>\n\n\n'
    'FUNCTION RESPONSE: {"rate": 2}\n\n\nASSISTANT: It is:\nUser: two. <|endoftext|>\n\n\n'
)
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
FROM_VALUE = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
QA = ("What is red?", "A colour.")

SHAPES: dict[str, tuple[dict[str, Any], str, tuple[str, str]]] = {
    "dolly": (
        {"instruction": "Name it.", "context": "A cat.", "response": "Cat.", "category": "closed_qa"},
        "columns: {input: context, output: response}",
        ("Name it.\n\nA cat.", "Cat."),
    ),
    "gsm8k": ({"question": QA[0], "answer": QA[1]}, "columns: {prompt: question, completion: answer}", QA),
    "squad": (
        {
            "id": "5", "title": "Red", "context": "Red is a colour.", "question": QA[0],
            "answers": {"text": ["a colour"], "answer_start": [7]},
        },
        "columns: {instruction: question, output: answers.text.0, input: context}",
        ("What is red?\n\nRed is a colour.", "a colour"),
    ),
    "metamath": (
        {"type": "MATH", "query": QA[0], "original_question": "Red?", "response": QA[1]},
        "columns: {prompt: query, completion: response}",
        QA,
    ),
    "openorca": (
        {"id": "flan.1", "system_prompt": "Be brief.", "question": QA[0], "response": QA[1]},
        "columns: {instruction: question, output: response, system: system_prompt}",
        QA,
    ),
    "lmsys": (
        {"conversation_id": "a1", "model": "m", "conversation": TURNS, "turn": 1, "language": "English", "redacted": False},
        "columns: {messages: conversation}",
        ("Hi", "Hello."),
    ),
    "turns of from and value": ({"dialog": FROM_VALUE}, "columns: {conversations: dialog}", ("Hi", "Hello.")),
    "prompt/response": ({"prompt": QA[0], "response": QA[1]}, "columns: {completion: response}", QA),
    "input/output": ({"input": QA[0], "output": QA[1]}, "columns: {prompt: input, completion: output}", QA),
    "flan": ({"inputs": QA[0], "targets": QA[1]}, "columns: {prompt: inputs, completion: targets}", QA),
    "glaive": (
        {"system": "SYSTEM: You may use functions.", "chat": TRANSCRIPT},
        "columns: {conversations: chat}",
        ('{"rate": 2}', "It is:\nUser: two."),
    ),
    "names of its own": (
        {"id": 3, "frage": "Was ist das hier?", "antwort": "Das ist ein Haus."},
        "columns: {prompt: frage, completion: antwort}",
        ("Was ist das hier?", "Das ist ein Haus."),
    ),
    "texts in an object": (
        {"translation": {"de": "Das Haus.", "en": "The house."}},
        "columns: {prompt: translation.de, completion: translation.en}",
        ("Das Haus.", "The house."),
    ),
}  # fmt: skip


def line_of(row: dict[str, Any]) -> dict[str, Any]:
    """What the message says to write, as YAML reads it."""
    with pytest.raises(DataError) as caught:
        find_format("auto", {}, row, "rows.jsonl:1")
    found: dict[str, Any] = {}
    for line in re.findall(r"`((?:columns|format): [^`]*)`", caught.value.fix or ""):
        found |= yaml.safe_load(line)
    return found


def read(row: dict[str, Any], said: dict[str, Any]) -> Row:
    return find_format(said.get("format", "auto"), said["columns"], row, "rows.jsonl:1").parse(row)


@pytest.mark.parametrize("name", SHAPES)
def test_the_line_that_the_message_says_reads_the_row(name: str) -> None:
    row, line, (asked, answered) = SHAPES[name]
    said = line_of(row)
    assert said == yaml.safe_load(line)
    parsed = read(row, said)
    assert isinstance(parsed, ChatRow)
    assert [message["content"] for message in parsed.messages[-2:]] == [asked, answered]
    assert parsed.messages[-1]["role"] == "assistant"


def test_speakers_of_a_transcript_are_roles_and_a_colon_in_an_answer_is_none() -> None:
    parsed = read(SHAPES["glaive"][0], {"columns": {"conversations": "chat"}})
    assert isinstance(parsed, ChatRow)
    assert [message["role"] for message in parsed.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert parsed.messages[0]["content"] == "You may use functions."


@pytest.mark.parametrize("as_text", [True, False])
def test_answers_that_are_calls_become_calls(as_text: bool) -> None:
    given = (json.dumps(CALLS), json.dumps(TOOLS)) if as_text else (CALLS, TOOLS)
    row = {"id": 1, "query": "Weather in Bern?", "answers": given[0], "tools": given[1]}
    said = line_of(row)
    assert said == {"columns": {"prompt": "query", "completion": "answers"}}
    parsed = read(row, said)
    assert isinstance(parsed, ChatRow)
    assert parsed.messages[-1]["tool_calls"] == [{"type": "function", "function": CALLS[0]}]
    assert parsed.tools == [{"type": "function", "function": TOOLS[0]}]


def test_conll_names_the_tags_that_are_meant() -> None:
    row = {"id": "0", "tokens": ["Ada", "wrote"], "pos_tags": [1, 2], "chunk_tags": [1, 2], "ner_tags": [1, 0]}
    said = line_of(row)
    assert said == {"columns": {"tags": "ner_tags"}}
    assert read(row, said) == TagRow(("Ada", "wrote"), (1, 0))


def test_a_named_format_says_the_columns_of_this_file() -> None:
    with pytest.raises(DataError, match="needs the column 'instruction'") as caught:
        find_format("instruction", {}, {"question": "a", "answer": "b"}, "rows.jsonl:1")
    assert caught.value.fix == "write `columns: {instruction: question, output: answer}`"


def test_an_object_as_completion_is_told_by_its_own_name_with_the_path_to_write(prepared: Any) -> None:
    rows = [{"q": "Who?", "reply": {"score": 2, "body": {"text": "Me."}}}]
    with pytest.raises(DataError, match=r"'reply' \(completion\) is an object, not text") as caught:
        prepared(rows, columns={"prompt": "q", "completion": "reply"})
    assert caught.value.fix == "name the text in it: `columns: {completion: reply.body.text}`"
    data = prepared(rows, columns={"prompt": "q", "completion": "reply.body.text"})
    assert data.facts.train.rows == 1


def test_a_path_that_leads_nowhere_is_told(prepared: Any) -> None:
    rows = [{"q": "Who?", "answers": {"text": ["Me."]}}, {"q": "Why?", "answers": {"text": []}}]
    with pytest.raises(DataError, match=r"'answers.text.0' \(completion\) leads nowhere in this row"):
        prepared(rows, columns={"prompt": "q", "completion": "answers.text.0"})
    with pytest.raises(DataError, match="leads nowhere") as caught:
        prepared(rows, columns={"prompt": "q", "completion": "answers.txt"})
    assert "answers.text.0" in str(caught.value.fix)


def test_a_question_and_its_answer_are_a_chat_under_a_template(
    prepared: Any, trained_text: Any, chat_tokenizer: Any
) -> None:
    pair = prepared([{"prompt": "Who?", "completion": "Me."}])
    assert trained_text(pair.train, 0, chat_tokenizer) == ["Me.<|im_end|>"]
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    own = chat_tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert pair.train[0].input_ids.tolist() == own
    assert pair.facts.holds_chats


def test_raw_when_asked_and_the_doctor_sees_a_missing_border(
    prepared: Any, trained_text: Any, chat_tokenizer: Any, plain_tokenizer: Any
) -> None:
    rows = [{"prompt": "Who is it?", "completion": "Me."}]
    for keys in ({"format": "segments"}, {"tokenizer": plain_tokenizer}):
        data = prepared(rows, **keys)
        tokenizer = keys.get("tokenizer", chat_tokenizer)
        assert tokenizer.decode(data.train[0].input_ids) == "<s>Who is it?Me.</s>"
        assert [finding.check for finding in data.findings if finding.check == "missing-border"]
        assert not data.facts.holds_chats
    for parted in ({"prompt": "Who is it?\n"}, {"completion": " Me."}, {"prompt": "Who is it? Answer:"}):
        data = prepared([{**rows[0], **parted}], format="segments")
        assert not [finding for finding in data.findings if finding.check == "missing-border"]


def test_tools_without_a_place_stop_the_run_or_are_left_out_when_asked(prepared: Any, make_tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = make_tokenizer(template=template)
    with pytest.raises(DataError, match="no place for them") as caught:
        prepared([{"messages": TURNS, "tools": TOOLS}], tokenizer=tokenizer)
    assert "checks: {lost-tools: warn}" in f"{caught.value} {caught.value.fix} {caught.value.faults}"
    left_out = prepared([{"messages": TURNS, "tools": TOOLS}], tokenizer=tokenizer, checks={"lost-tools": "warn"})
    without = prepared([{"messages": TURNS}], tokenizer=tokenizer)
    assert left_out.facts.train.stream_sha256 == without.facts.train.stream_sha256


@pytest.mark.parametrize(
    ("name", "sign"), [("a.csv", ";"), ("a.csv", "\t"), ("a.csv", "|"), ("a.tsv", ";"), ("a.csv", ",")]
)
def test_the_separator_is_the_one_that_the_header_has(name: str, sign: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(f'question{sign}"answer"\nWho?{sign}"Me; or, you"\n', encoding="utf-8")
    assert rows_in(tmp_path / name) == [{"question": "Who?", "answer": "Me; or, you"}]


def test_one_column_is_not_cut_at_signs_of_its_cells(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\none; two | three\n", encoding="utf-8")
    assert rows_in(tmp_path / "a.csv") == [{"text": "one; two | three"}]


@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", "text\rone\rtwo\r"), ("a.jsonl", '{"text": "a"}\r{"text": "b"}\r')]
)
def test_lone_carriage_returns_are_told_with_the_command(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode())
    with pytest.raises(DataError, match="carriage returns alone") as caught:
        rows_in(tmp_path / name)
    assert caught.value.fix == r"convert it: tr '\r' '\n' < OLD > NEW"


def rows_in(path: Path) -> list[dict[str, Any]]:
    faults = FaultLog()
    rows = [row for chunk in read_file(path, path.name, faults) for row in chunk.rows]
    faults.raise_any()
    return rows


def test_pairs_of_answers_name_the_column_of_their_question() -> None:
    row = {"system": "", "question": "Who?", "chosen": "Me.", "rejected": "No."}
    with pytest.raises(RowFault) as caught:
        find_format("auto", {}, row, "rows.jsonl:1").parse(row)
    assert caught.value.fix == "write `columns: {prompt: question}`"
    assert find_format("auto", {"prompt": "question"}, row, "rows.jsonl:1").format.name == "preference"
