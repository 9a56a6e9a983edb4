"""What is known about the data once it is prepared: plain facts for plan, lock, record and report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from peftcli.data.format import load_format
from peftcli.data.sources import FileFacts
from peftcli.data.store import UNLABELLED, TokenColumns, TokenStore, gather

HISTOGRAM_BINS = 24
_HASHED_ROWS = 1 << 16


@dataclass(frozen=True)
class SourceFacts:
    """One source in one split.

    `rows_read`, `rows_kept` and `dropped` count rows (documents) of the source; `rows` are rows that an epoch trains on
    from it, `share` their part of all, `asked` the part that the weights ask for (None without weights).
    """

    name: str
    format: str
    why: str
    files: list[FileFacts]
    rows_read: int
    rows_kept: int
    dropped: dict[str, int]
    rows: int
    share: float
    asked: float | None
    tokens: int
    trained_tokens: int
    tokens_lost: int
    trained_tokens_lost: int


@dataclass(frozen=True)
class SplitFacts:
    """One split. `quantiles` and `histogram` ((low, high, rows), high exclusive) are of row lengths in tokens."""

    rows_read: int
    rows_kept: int
    dropped: dict[str, int]
    rows: int
    tokens: int
    trained_tokens: int
    tokens_lost: int
    trained_tokens_lost: int
    quantiles: dict[str, float]
    histogram: list[tuple[int, int, int]]
    sources: list[SourceFacts]
    order_sha256: str
    stream_sha256: str


@dataclass(frozen=True)
class DataFacts:
    """The data of a run. `seconds`: reading and encoding, or finding it in the cache; `cached`: sources from there.

    `streaming`: `train` is about the first rows of a stream only.
    """

    train: SplitFacts
    validation: SplitFacts | None
    tokenizer_sha256: str
    template_sha256: str | None
    max_token_id: int
    max_length: int
    seconds: float = 0.0
    cached: int = 0
    sources: int = 0
    findings: dict[str, int] = field(default_factory=dict)
    streaming: bool = False
    validation_trained_on: int = 0
    """Validation rows, before any cut, that are training rows too."""

    @property
    def holds_chats(self) -> bool:
        """Whether rows were written by a chat template."""
        formats = {source.format for source in self.train.sources}
        # a source without a row has no format, and shows nothing against its template
        return self.template_sha256 is not None and any(not name or load_format(name).templated for name in formats)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: tuples are lists there."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def quantiles_of(lengths: np.ndarray) -> dict[str, float]:
    """min, p50, p90, p99, max and mean of row lengths."""
    if not lengths.size:
        return {}
    low, half, most, almost, high = np.quantile(lengths, [0, 0.5, 0.9, 0.99, 1])
    named = {"min": low, "p50": half, "p90": most, "p99": almost, "max": high, "mean": lengths.mean()}
    return {name: round(float(value), 2) for name, value in named.items()}


def histogram_of(lengths: np.ndarray, bins: int = HISTOGRAM_BINS) -> list[tuple[int, int, int]]:
    """(low, high, rows) with whole numbers as edges, high exclusive; all as wide but the last, which may be narrower."""
    if not lengths.size:
        return []
    low, high = int(lengths.min()), int(lengths.max()) + 1
    width = -(-(high - low) // bins)
    edges = np.append(np.arange(low, high, width), high)
    counts, _ = np.histogram(lengths, bins=edges)
    return [(int(start), int(end), int(rows)) for start, end, rows in zip(edges, edges[1:], counts, strict=False)]


def order_sha256(store: TokenStore, inputs: Sequence[str]) -> str:
    """Of which row of which input stands where. `inputs`: a content hash for each of the store's files."""
    digest = hashlib.sha256("\n".join(inputs).encode())
    for part in (store.index.file.astype("<i8"), store.index.line.astype("<i8"), store.index.length.astype("<i8")):
        digest.update(part.tobytes())
    return digest.hexdigest()


def stream_sha256(store: TokenStore) -> str:
    """Of every token, weight, length, part and label, in the store's order: equal exactly when training sees the same
    rows."""
    digest = hashlib.sha256()
    for start in range(0, len(store), _HASHED_ROWS):
        rows = store.index.take(np.arange(start, min(start + _HASHED_ROWS, len(store))))
        flat: TokenColumns = gather(store.columns, rows)
        for part in (rows.length.astype("<i8"), flat.tokens.astype("<i4"), flat.weights.astype("<f4")):
            digest.update(part.tobytes())
        digest.update(flat.parts.astype("<i4").tobytes())
        if store.label_sets:
            labels = [None if number == UNLABELLED else store.label_sets[number] for number in rows.label.tolist()]
            digest.update(json.dumps(labels).encode())
    return digest.hexdigest()
