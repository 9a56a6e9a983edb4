"""What a row is once its format has been read: the same few shapes, whatever file and layout it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Label = str | int | float
"""What a row is labelled with: the name or number of a class, a tag, or a measured value."""
MASKED = -0.0
"""Loss weight of what a model writes itself and is not trained on, a masked thought; its sign tells it from context."""
Message = dict[str, Any]
"""One turn: `role`, `content`, and what else a template reads (`tool_calls`, thoughts, `name`)."""


@dataclass(frozen=True, slots=True)
class TextRow:
    """A document, trained on whole."""

    text: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text with its loss weight; 0 is context, None lets the recipe's `train_on` decide (a prompt)."""

    text: str
    weight: float | None


@dataclass(frozen=True, slots=True)
class PiecesRow:
    """Pieces one after the other, without a chat template."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation. `weights`: the loss weight of each message, None where the recipe's `train_on` decides.

    `plain`: the same row as pieces, for a tokenizer without a chat template; None where it needs one.
    """

    messages: list[Message]
    weights: list[float | None]
    tools: list[Any] | None = None
    plain: PiecesRow | None = None


@dataclass(frozen=True, slots=True)
class LabelRow:
    """Classification: a text, perhaps a second one, and its label or labels."""

    text: str
    pair: str | None
    labels: tuple[Label, ...]
    several: bool = False
    """Whether the row holds a list: any number of labels apply, none among them."""


@dataclass(frozen=True, slots=True)
class TagRow:
    """Token classification: words and one tag for each."""

    words: tuple[str, ...]
    tags: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class PairRow:
    """Sequence to sequence: what is read and what is to be written."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """A prompt with a better and a worse answer, or one answer with a verdict (`rejected` None, `liked` set).

    `prompt`, `chosen` and `rejected` are texts or lists of messages, all alike.
    """

    prompt: str | list[Message]
    chosen: str | list[Message]
    rejected: str | list[Message] | None = None
    liked: bool | None = None


@dataclass(frozen=True, slots=True)
class ContrastRow:
    """Texts that are compared with the first: the second is its match, those after it are not.

    `score`: how alike the two texts of a row are, -1 to 1; None where they are a match.
    """

    texts: tuple[str, ...]
    score: float | None = None


Row = TextRow | PiecesRow | ChatRow | LabelRow | TagRow | PairRow | PreferenceRow | ContrastRow
"""A row in the shape of its format; the encoder is chosen by the class."""
