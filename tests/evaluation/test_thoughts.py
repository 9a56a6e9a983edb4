"""Thoughts are cut before an answer is judged, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peftcli.evaluation.thoughts import answer_text, without_thoughts


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("<think>\n1 + 1\n</think>\n\n2", "2"),
        ("<think></think>2", "2"),
        ("of course</think>\n2", "2"),  # the prompt had opened the thought
        ("<think>still at it", ""),  # cut before its end: there is no answer
        ("<think>a</think><think>b</think> 2", "2"),
        ("<reasoning>a</reasoning>2", "2"),
        ("[THINK]a[/THINK]2", "2"),
        ("<seed:think>a</seed:think>2", "2"),
        ("[THINK]still at it", ""),
        ("of course[/THINK]2", "2"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>2", "2"),
        ("<|channel|>final<|message|>2", "2"),
        ("◁think▷a◁/think▷2", "2"),
        (" 2 ", " 2 "),
        ("2 < 3, I think", "2 < 3, I think"),
        ("<b>2</b>", "<b>2</b>"),
        ("", ""),
    ],
)
def test_the_answer_alone_is_left(written: str, answer: str) -> None:
    assert without_thoughts(written) == answer


CHANNELS = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"]
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize("marks_are_special", [False, True])
@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("[THINK]1 + 1[/THINK] 2<eos>", "2"),
        ("1 + 1[/THINK]2<eos>", "2"),
        ("[THINK]1 + 1", ""),
        (f"{ANALYSIS}1 + 1<|end|>{FINAL}2<|return|>", "2"),
        (f"{ANALYSIS}1 + 1", ""),
        ("2<eos>", "2"),
    ],
)
def test_marks_that_are_special_tokens_are_marks_all_the_same(
    written: str, answer: str, marks_are_special: bool, make_tokenizer: Callable[[], Any]
) -> None:
    """Decoding without special tokens keeps the thought and loses its marks: `1 + 12` would be judged."""
    tokenizer = make_tokenizer()
    names = ["[THINK]", "[/THINK]", *CHANNELS]
    tokenizer.add_tokens(names, special_tokens=marks_are_special)
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    if marks_are_special and "1 + 1" in written:
        assert without_thoughts(text) != answer
    found = answer_text(tokenizer, ids, text)
    assert found.removesuffix("<|return|>") == answer, "an end that is no special token is part of the text"
