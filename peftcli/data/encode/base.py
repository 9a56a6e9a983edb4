"""What the encoders of this room take (settings) and give (rows as flat arrays, hits of checks)."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peftcli.data.config import DataConfig, TrainOn
from peftcli.data.rows import Label, Row
from peftcli.data.tokens import Codec
from peftcli.data.truncation import Keep
from peftcli.errors import ModelError

Place = Callable[[int], str]
"""File and line of the row at a position."""


@dataclass(frozen=True)
class EncodeSettings:
    """The recipe keys that decide tokens and weights, beside the tokenizer and its template."""

    append_eos: bool
    train_on: TrainOn
    thoughts: float = 1.0
    """What the thoughts of an answer weigh beside the rest of it."""

    @classmethod
    def of(cls, config: DataConfig) -> EncodeSettings:
        """Those of a recipe's `data` section."""
        return cls(config.append_eos, config.train_on, config.thought_share)


@dataclass(frozen=True)
class RowHit:
    """A check that fired while encoding: position of the row in the chunk, and what is wrong."""

    check: str
    row: int
    message: str


@dataclass
class EncodedRows:
    """Encoded rows, one after the other: `ids` of all of them, `lengths` of each.

    `run_lengths` and `run_weights`: stretches of equal loss weight over all rows, one entry each.

    `kept`: positions in the chunk of the rows that are here; `refused`: position -> why a row is not, and what to
    do about it where that is not to correct the row.
    """

    ids: array[int] = field(default_factory=lambda: array("i"))
    lengths: list[int] = field(default_factory=list)
    run_lengths: list[int] = field(default_factory=list)
    run_weights: list[float] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    refused: dict[int, tuple[str, str | None]] = field(default_factory=dict)
    hits: list[RowHit] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    """The part of every token; empty where rows have one part."""
    labels: list[tuple[Label, ...]] = field(default_factory=list)
    """What each row is labelled with; empty where rows have no labels."""

    def run(self, ids: list[int], weight: float) -> None:
        """Appends a stretch of tokens to the row under construction."""
        self.ids.extend(ids)
        self.run_lengths.append(len(ids))
        self.run_weights.append(weight)

    def end_row(self, row: int, start: int) -> None:
        """Closes the row whose tokens began at `start` of `ids`."""
        self.lengths.append(len(self.ids) - start)
        self.kept.append(row)

    def tokens(self) -> np.ndarray:
        """(tokens,) int32."""
        # a view of the array, which must not grow any more: no copy of a chunk's tokens
        return np.frombuffer(self.ids, dtype=np.int32) if self.ids else np.empty(0, dtype=np.int32)

    def weights(self) -> np.ndarray:
        """(tokens,) float32."""
        return np.repeat(np.array(self.run_weights, dtype=np.float32), self.run_lengths)


RowsEncoder = Callable[[Codec, Sequence[Any], EncodeSettings], EncodedRows]
"""Encodes rows of one shape."""


ComposedEncoder = Callable[[Sequence[Any], Callable[[Sequence[Row], Place], EncodedRows], Place], EncodedRows]
"""Encodes rows that hold several rows of language models, by the encoder of those."""


@dataclass(frozen=True)
class Encoding:
    """How a task wants rows to become tokens. `task`: its name, for messages and for the key of the token cache."""

    task: str
    encoders: Mapping[type[Row], RowsEncoder]
    """Shape of a row -> its encoder. Rows of other shapes are refused."""
    chats: bool = False
    """Whether conversations are written by the chat template."""
    from_before: bool = False
    """Whether targets are predicted from the token before them."""
    keep: Keep | None = None
    """How rows of several parts are shortened; None: as one run."""
    composed: Mapping[type[Row], ComposedEncoder] = field(default_factory=dict)
    """Shape of a row that holds several rows of language models -> its encoder."""
    alternatives: tuple[int, ...] = ()
    """Parts of which a model reads one at a time: such a row is as long as its longest reading."""
    train_on: TrainOn | None = None
    """What is trained of conversations, where that is no choice of the recipe."""
    by_class: bool = False
    """Whether rows that are held out keep the proportions of the labels."""
    apart: bool = False
    """Whether the model reads each text of a row by itself, so that `max_length` is of a text."""


def end_token(eos_id: int | None, settings: EncodeSettings) -> list[int]:
    """The end token to append, or nothing. `ModelError` when one is wanted and the tokenizer has none."""
    if not settings.append_eos:
        return []
    if eos_id is None:
        raise ModelError(
            "the tokenizer has no end token, so the model would never learn to stop",
            fix="set eos_token in its tokenizer_config.json, or `data.append_eos: false` for text without ends",
        )
    return [eos_id]
