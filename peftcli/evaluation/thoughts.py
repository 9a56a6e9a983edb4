"""What a model thinks before it answers is not its answer: the same cut for predictions and references, in every metric."""

from __future__ import annotations

import re

_NAMES = "think|thinking|thought|reasoning|seed:think"
_THOUGHT = re.compile(rf"<({_NAMES})>.*?</\1>", re.DOTALL)
_TAIL = re.compile(rf"\A.*?</(?:{_NAMES})>", re.DOTALL)
_OPEN = re.compile(rf"<(?:{_NAMES})>.*\Z", re.DOTALL)
_MISTRAL = re.compile(r"\[THINK\].*?\[/THINK\]", re.DOTALL)


def without_thoughts(text: str) -> str:
    """The answer alone: without closed thoughts, without one that the prompt opened, without one cut before its end.

    Text without such marks is returned as it is, so that a metric sees what was written to the last space.
    """
    kept = _MISTRAL.sub("", _THOUGHT.sub("", text))
    kept = _OPEN.sub("", _TAIL.sub("", kept, count=1))
    return text if kept == text else kept.strip()
