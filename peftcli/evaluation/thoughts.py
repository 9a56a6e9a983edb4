"""What a model thinks before it answers is not its answer: the same cut for predictions and references, in every metric."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from peftcli.data.asking import text_of
from peftcli.data.chat.thoughts import MARKS

_THOUGHT = re.compile("|".join(f"{re.escape(begin)}.*?{re.escape(end)}" for begin, end in MARKS), re.DOTALL)
_TAIL = re.compile(rf"\A.*?(?:{'|'.join(re.escape(end) for _, end in MARKS)})", re.DOTALL)
_OPEN = re.compile(rf"(?:{'|'.join(re.escape(begin) for begin, _ in MARKS)}).*\Z", re.DOTALL)


def without_thoughts(text: str) -> str:
    """The answer alone: without closed thoughts, without one that the prompt opened, without one cut before its end.

    Text without such marks is returned as it is, so that a metric sees what was written to the last space.
    """
    kept = _THOUGHT.sub("", text)
    kept = _OPEN.sub("", _TAIL.sub("", kept, count=1))
    return text if kept == text else kept.strip()


def answer_text(tokenizer: Any, ids: Sequence[int], text: str) -> str:
    """The answer alone of token ids whose `text` is without special tokens; also where the marks are special tokens, which
    that text has lost while it kept the thought between them."""
    special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    if not any(special[number] in mark for number in set(ids) & special.keys() for pair in MARKS for mark in pair):
        return without_thoughts(text)
    whole = text_of(tokenizer, list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    kept = without_thoughts(whole)
    for content in {special[number] for number in set(ids) & special.keys()}:
        kept = kept.replace(content, "")
    return kept.strip()
