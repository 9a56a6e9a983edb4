"""Thoughts are cut before an answer is judged, and nothing else is."""

from __future__ import annotations

import pytest

from peftcli.evaluation.thoughts import without_thoughts


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
        (" 2 ", " 2 "),
        ("2 < 3, I think", "2 < 3, I think"),
        ("<b>2</b>", "<b>2</b>"),
        ("", ""),
    ],
)
def test_the_answer_alone_is_left(written: str, answer: str) -> None:
    assert without_thoughts(written) == answer
