"""What is shown of rows is what training reads, and text from data can do nothing to a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peftcli.data.cases import generation_cases
from peftcli.data.config import DataConfig
from peftcli.data.preview import read_parts, row_spans
from peftcli.reports.data_text import rows_text
from peftcli.reports.record import DataRow, Span


def test_the_spans_are_the_very_row(prepared: Any, chat: Any, chat_tokenizer: Any) -> None:
    data = prepared([chat("question", "the answer", "more", "the cat")])
    row = data.train[0]
    spans = row_spans(row, chat_tokenizer)
    assert "".join(span.text for span in spans) == chat_tokenizer.decode(row.input_ids)
    assert [span.text for span in spans if span.kind == "trained"] == ["the answer", "the cat"]
    assert [span.text for span in spans if span.kind == "special" and span.trained] == ["<|im_end|>"] * 2


def test_spaces_at_the_edges_of_spans_are_kept(ground: Path, tmp_path: Path, write_rows: Any) -> None:
    from transformers import AutoTokenizer

    from peftcli.data.prepare import prepare

    tokenizer = AutoTokenizer.from_pretrained(ground / "models" / "stories260K")
    write_rows([{"prompt": "Once upon a", "completion": " time there was"}])
    data = prepare(DataConfig(train="rows.jsonl", validation=0), tokenizer=tokenizer, folder=tmp_path, seed=0)
    spans = row_spans(data.train[0], tokenizer)
    assert [span.text for span in spans if span.kind == "trained"] == [" time there was"]


def test_text_of_rows_cannot_style_the_terminal() -> None:
    text = "[red]x[/red] \\[b] \x1b[31m \u202e end\\"
    row = DataRow(origin="[b]f\x1b.jsonl:3", spans=[Span(text=text, kind="trained")], tokens=4, trained_tokens=2)
    plain = rows_text([row])
    assert "[red]x[/red] \\[b] ⟨U+001B⟩[31m ⟨U+202E⟩ end\\" in plain
    assert "[b]f⟨U+001B⟩.jsonl:3" in plain


def test_rows_of_every_format_can_be_shown(tmp_path: Path, write_rows: Any) -> None:
    from peftcli.data.format import load_format
    from peftcli.data.names import format_names

    for name in format_names():
        (tmp_path / "rows.jsonl").write_text(load_format(name).example + "\n")
        (parts,) = read_parts(DataConfig(train="rows.jsonl", validation=0), folder=tmp_path, limit=3)
        assert parts.format == name
        assert any(span.kind == "trained" for span in parts.rows[0].spans), name


def test_generation_cases_ask_for_the_last_answer(prepared: Any, chat: Any, chat_tokenizer: Any) -> None:
    messages = chat("question", "the answer", "more", "the cat")
    data = prepared([messages])
    (case,) = generation_cases(data.train, chat_tokenizer, 5)
    assert case.reference_text == "the cat"
    asked = chat_tokenizer.apply_chat_template(
        messages["messages"][:3], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert case.prompt_ids.tolist() == asked
    assert case.origin.line == 1


def test_a_text_row_is_cut_in_the_middle(prepared: Any, chat_tokenizer: Any) -> None:
    data = prepared([{"text": "the cat sat on the mat and the dog ran"}])
    (case,) = generation_cases(data.train, chat_tokenizer, 1)
    assert case.prompt_text.removeprefix("<s>") + case.reference_text == "the cat sat on the mat and the dog ran"


def test_readme_examples_of_formats_are_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown format"):
        DataConfig(train="x", format="alpacca")


def test_the_stop_token_stands_within_the_marks_of_what_is_trained(
    prepared: Any, chat: Any, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftcli.reports import data_text
    from peftcli.runs.showing import shown_row

    data = prepared([chat("question", "the answer")])
    row = data.train[0]
    shown = data_text.rows_text([shown_row(row, chat_tokenizer)])
    assert "[[the answer<|im_end|>]]" in shown
    assert shown.count("[[") == 2  # and the legend
    ids = data_text.ids_text(row.input_ids.tolist(), row.weights.tolist())
    trained = ids[ids.index("[[") + 2 : ids.index("]]")]
    assert chat_tokenizer.decode([int(each) for each in trained.split()]) == "the answer<|im_end|>"
    monkeypatch.setattr(data_text, "_coloured", lambda: True)
    coloured = data_text.rows_text([shown_row(row, chat_tokenizer)])
    assert "\x1b[33m\x1b[4m<|im_end|>" in coloured
    assert coloured.count("\x1b[4m") == 1
