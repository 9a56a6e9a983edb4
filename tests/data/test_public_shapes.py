"""Rows as public data sets have them: read as they are, or refused with the line of the recipe that reads them.

The shapes are those of the data sets' cards; the words are our own.
"""

from __future__ import annotations

import datetime
import decimal
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftcli.data.faults import FaultLog, RowFault
from peftcli.data.format import find_format
from peftcli.data.readers.containers import read_file
from peftcli.data.rows import ChatRow, ContrastRow, LabelRow, PreferenceRow, Row, TagRow
from peftcli.errors import DataError, RecipeError

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


READ = {
    "alpaca": {"instruction": "Hi", "input": "", "output": "Hello.", "text": "Below is an instruction."},
    "sharegpt": {"id": "a", "conversations": FROM_VALUE},
    "ultrachat_200k": {"prompt": "Hi", "prompt_id": "1", "messages": TURNS},
    "ultrachat": {"id": "0", "data": ["Hi", "Hello."]},
    "openr1": {"problem": "a", "solution": "b", "answer": "c", "messages": TURNS},
    "squad": {
        "id": "5", "title": "Red", "context": "Red is a colour.", "question": QA[0],
        "answers": {"text": ["a colour", "colour"], "answer_start": [7, 9]},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_public_conversations_are_read_as_they_are(name: str) -> None:
    parsed = find_format("auto", {}, READ[name], "rows.jsonl:1").parse(READ[name])
    assert isinstance(parsed, ChatRow)
    wanted = ["What is red?\n\nRed is a colour.", "a colour"] if name == "squad" else ["Hi", "Hello."]
    assert [message["content"] for message in parsed.messages] == wanted


LABELLED = [
    ({"sentence": "It is.", "label": 1, "idx": 0}, LabelRow("It is.", None, (1,))),
    ({"sentence1": "a", "sentence2": "b", "label": 0, "idx": 3}, LabelRow("a", "b", (0,))),
    ({"question1": "a", "question2": "b", "label": 0, "idx": 3}, LabelRow("a", "b", (0,))),
    ({"premise": "a", "hypothesis": "b", "label": 2, "idx": 3}, LabelRow("a", "b", (2,))),
    ({"question": "a", "sentence": "b", "label": 1, "idx": 3}, LabelRow("a", "b", (1,))),
    ({"sentence1": "a", "sentence2": "b", "label": 3.8, "idx": 3}, LabelRow("a", "b", (3.8,))),
    ({"text": "good", "label": -1}, LabelRow("good", None, (-1,))),
    ({"id": "0", "tokens": ["Ada", "wrote"], "ner_tags": [1, 0]}, TagRow(("Ada", "wrote"), (1, 0))),
    ({"query": "a", "positive": "b", "negative": "c"}, ContrastRow(("a", "b", "c"))),
    ({"prompt": [TURNS[0]], "completion": [TURNS[1]], "label": False},
     PreferenceRow(TURNS[:1], TURNS[1:], liked=False)),
]  # fmt: skip


@pytest.mark.parametrize(("row", "wanted"), LABELLED)
def test_public_rows_with_labels_are_read_as_they_are(row: dict[str, Any], wanted: Row) -> None:
    assert find_format("auto", {}, row, "rows.jsonl:1").parse(row) == wanted


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence1": "a", "sentence2": "b", "label": -1, "idx": 3}, "'label' is -1"),
        ({"context": "a", "question": "b", "answers": {"text": [], "answer_start": []}}, "no answer in its context"),
    ],
)
def test_what_a_public_split_holds_back_is_not_learnt(row: dict[str, Any], message: str) -> None:
    found = find_format("auto", {}, row, "rows.jsonl:1")
    with pytest.raises(RowFault, match=message):
        found.parse(row)


BAD = [TURNS[0], {"role": "assistant", "content": "Go."}]
HH = ("\n\nHuman: Hi\n\nAssistant: Hello.", "\n\nHuman: Hi\n\nAssistant: Go.")


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": HH[0], "rejected": HH[1]},
        {"prompt": "Hi", "prompt_id": "1", "chosen": TURNS, "rejected": BAD, "messages": TURNS, "score_chosen": 8.0},
        {"prompt": "Hi", "chosen": TURNS[1:], "rejected": BAD[1:]},
        {"chosen": TURNS, "rejected": BAD},
    ],
    ids=["hh-rlhf", "ultrafeedback", "answers alone", "whole conversations"],
)
def test_pairs_of_whole_conversations_are_a_prompt_and_two_answers(row: dict[str, Any]) -> None:
    assert find_format("auto", {}, row, "rows.jsonl:1").parse(row) == PreferenceRow(TURNS[:1], TURNS[1:], BAD[1:])


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Hi", "input": "", "output": "Hello.", "kto_tag": False},
        {"conversations": FROM_VALUE, "kto_tag": False},
        {"messages": TURNS, "label": False},
    ],
    ids=["instruction", "sharegpt", "messages"],
)
def test_an_answer_that_is_marked_as_bad_is_not_trained_unasked(row: dict[str, Any]) -> None:
    found = find_format("auto", {}, row, "rows.jsonl:1")
    assert found.parse(row) == PreferenceRow(TURNS[:1], TURNS[1:], liked=False)
    assert not found.format.one_sequence


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": json.dumps(FROM_VALUE)},
        {"messages": {"role": ["user", "assistant"], "content": ["Hi", "Hello."]}},
        {"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Hello."]}},
    ],
    ids=["turns as JSON text", "columns of turns", "columns of from and value"],
)
def test_turns_are_found_in_text_and_in_columns(row: dict[str, Any]) -> None:
    parsed = find_format("auto", {}, row, "rows.jsonl:1").parse(row)
    assert isinstance(parsed, ChatRow)
    assert parsed.messages == TURNS


@pytest.mark.parametrize(
    ("row", "line", "other"),
    [
        ({"text": "A law.", "summary": "Law.", "title": "t"}, "columns: {prompt: text, completion: summary}", "prompt"),
        ({"text": "Hi", "response": "Hello."}, "columns: {prompt: text, completion: response}", "prompt"),
    ],
)
def test_a_text_beside_its_answer_or_label_is_not_taken_for_a_document(
    row: dict[str, Any], line: str, other: str
) -> None:
    with pytest.raises(DataError, match=f"two formats have these columns: text, .* and {other}") as caught:
        find_format("auto", {}, row, "rows.jsonl:1")
    assert f"`{line}`" in (caught.value.fix or "")
    assert "`format: text`" in (caught.value.fix or "")
    found = find_format("auto", yaml.safe_load(line)["columns"], row, "rows.jsonl:1")
    assert found.format.name.startswith(other)
    assert find_format("text", {}, row, "rows.jsonl:1").format.name == "text"


@pytest.mark.parametrize("row", [{"text": "a", "category": "law", "title": "t"}, {"text": "a", "summary": None}])
def test_a_document_with_words_about_it_stays_a_document(row: dict[str, Any]) -> None:
    assert find_format("auto", {}, row, "rows.jsonl:1").format.name == "text"


@pytest.mark.parametrize(
    ("row", "message", "fix"),
    [
        (
            {"question": "2 + 2?", "answer": 4},
            "rows of prompt-completion by their columns, but 'answer' (completion) is a number, not text",
            'write it as text, "4"; then write `columns: {prompt: question, completion: answer}` into `data`',
        ),
        (
            {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]},
            "no format has these columns: contents",
            "'contents' is a list of objects with role, parts: write each row as "
            '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}',
        ),
        (
            {"custom_id": "a", "params": {"messages": TURNS}},
            "no format has these columns: custom_id, params",
            "write `columns: {messages: params.messages}` into `data`: rows of messages",
        ),
        (
            {"qid": 1, "question": "Red?", "answers": [{"score": 3, "text": "A colour."}]},
            "no format has these columns: qid, question, answers",
            "write `columns: {prompt: question, completion: answers.0.text}` into `data`: rows of prompt-completion",
        ),
    ],
)
def test_what_cannot_be_read_is_told_with_its_own_remedy(row: dict[str, Any], message: str, fix: str) -> None:
    with pytest.raises(DataError) as caught:
        find_format("auto", {}, row, "rows.jsonl:1")
    assert (caught.value.message, caught.value.fix) == (message, fix)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "text": "Hi"}]}, "message 1 (user) has no content; its keys: role, text"),
        ({"conversations": [{"from": "user", "content": "Hi"}]}, "turn 1 has no 'value'; its keys: from, content"),
        ({"messages": "[{'role': 'user'}]"}, "'messages' is text but not JSON"),
        ({"messages": '[{"a":' * 50_000}, "'messages' is text but not JSON"),
        ({"chosen": "a", "rejected": "b"}, "the column 'prompt' is missing"),
    ],
)
def test_turns_under_other_keys_are_told_with_the_keys(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowFault) as caught:
        find_format("auto", {}, row, "rows.jsonl:1").parse(row)
    assert caught.value.message == message
    assert caught.value.fix


@pytest.mark.parametrize(
    ("name", "data", "message", "fix"),
    [
        ("a.csv", "a;b\nx;y\n".encode("utf-16-le"), "UTF-16LE, not UTF-8", "iconv -f UTF-16LE -t UTF-8"),
        ("a.csv", "a;b\nx;y\n".encode("utf-16-be"), "UTF-16BE, not UTF-8", "iconv -f UTF-16BE -t UTF-8"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-32"), "UTF-32, not UTF-8", "iconv -f UTF-32 -t UTF-8"),
        ("a.jsonl", b'[{"text": "a"}]', "not a list", "a list of rows is a .json file: rename it"),
        ("a.jsonl", b'{\n "text": "a"\n}\n', "not valid JSON", "write one whole object per line"),
        ("a.jsonl", b"{'text': 'a'}\n", "not valid JSON", "json.dumps"),
    ],
)
def test_a_file_that_is_read_wrongly_as_a_whole_is_told_as_a_whole(
    name: str, data: bytes, message: str, fix: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        rows_in(tmp_path / name)
    assert message in str(caught.value)
    assert fix in str(caught.value)


def test_the_line_that_a_spreadsheet_writes_for_itself_is_no_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\nprompt;completion\na,b;c\n")
    assert rows_in(tmp_path / "a.csv") == [{"prompt": "a,b", "completion": "c"}]


def test_the_suggested_line_is_yaml_whatever_the_columns_are_called() -> None:
    row = {"Was ist: das": "Eine Frage?", "a, b": "Ja, eine Frage."}
    assert line_of(row) == {"columns": {"prompt": "Was ist: das", "completion": "a, b"}}


def test_judged_answers_are_refused_with_their_place_and_the_line_that_trains_them_all_the_same(prepared: Any) -> None:
    rows = [{"messages": TURNS, "label": False}]
    with pytest.raises(RecipeError, match=r"judged or compared \(format preference\)") as caught:
        prepared(rows)
    assert (caught.value.where or "").endswith("rows.jsonl:1")
    assert "`format: messages`" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        (datetime.date(2026, 1, 2), "cast the column to text where the file is written"),
        (decimal.Decimal("1.50"), "cast the column to text where the file is written"),
        (True, 'write it as text, "true"'),
        (["a", "b"], "name the text in it (the first of 2): `columns: {completion: completion.0}`"),
    ],
)
def test_a_value_that_is_no_text_is_answered_by_what_it_is(value: Any, fix: str) -> None:
    row = {"prompt": "When?", "completion": value}
    with pytest.raises(RowFault, match=r"'completion' is .*, not text") as caught:
        find_format("auto", {}, row, "rows.parquet, row 1").parse(row)
    assert caught.value.fix == fix
