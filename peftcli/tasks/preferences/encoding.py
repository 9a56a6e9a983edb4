"""How rows of compared answers become tokens."""

from __future__ import annotations

from peftcli.data.encode.base import Encoding
from peftcli.data.encode.compared import encode_compared, keep_answers
from peftcli.data.rows import PreferenceRow
from peftcli.tasks.preferences.batching import ALTERNATIVES


def encoding_of(task: str) -> Encoding:
    """By the chat template where the tokenizer has one; texts without one piece by piece."""
    return Encoding(
        task,
        {},
        keep=keep_answers,
        composed={PreferenceRow: encode_compared},
        alternatives=ALTERNATIVES,
        train_on="completions",
    )
