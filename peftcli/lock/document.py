"""What a lock holds: every input of a run, and the results that it is expected to repeat."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT = 1
"""Of the document: raised when an older release would read it wrongly."""
LOCK_NAME = "recipe.lock"
"""The lock that a run writes into its folder."""

Value = Any
"""A value of a recipe: whatever JSON holds."""
Band = tuple[float, float, float]
"""A metric's value, and the lowest and highest that still count as the same."""


class Part(BaseModel):
    """Base of all parts of a lock."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class BaseLock(Part):
    """The base: where it is from, and what its files and its weights are."""

    name: str
    """Hub id, `builtin:NAME`, or a path relative to the lock."""
    commit: str | None = None
    """Of the Hub; None for a folder."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of every file that is read."""
    fingerprint: dict[str, str] | None = None
    """Of the weights as loaded; None in a lock that was made without loading them."""


class SourceLock(Part):
    """One source of one split, by the content of its files."""

    split: str
    name: str
    format: str | None = None
    """What `data.format: auto` became."""
    files: dict[str, str]
    """Path relative to the lock (or the Hub's name) -> SHA-256."""


class SplitLock(Part):
    """The rows of a split as training sees them: how many, which, in which order, with which tokens and weights."""

    rows: int
    order_sha256: str
    """Which row of which file stands where."""
    stream_sha256: str
    """Every token and weight, in order."""


class DataLock(Part):
    """All data of a run."""

    sources: list[SourceLock] = Field(default_factory=list)
    train: SplitLock
    validation: SplitLock | None = None


class TokenizerLock(Part):
    """The tokenizer's files and its chat template, by content."""

    sha256: str
    template_sha256: str | None = None


class AdapterLock(Part):
    """The adapter that training goes on from, by the content of its files."""

    name: str
    """`owner/name@revision` of the Hub, or a path relative to the lock."""
    commit: str | None = None
    """Of the Hub; None for a folder."""
    files: dict[str, str]
    """Name -> SHA-256 of every file that is read."""


class RunTrace(Part):
    """What one seed's run did, step by step; a step without a value was skipped."""

    seed: int
    steps: int
    kept: list[int] | None = None
    """The steps that the series below are of; None: every one."""
    loss: list[str | None]
    """`float.hex`, zeros cut."""
    grad_norm: list[str | None]
    batch: list[str | None]
    """Digest of the tokens and weights of the batch."""
    draws: list[str | None]
    """Digest of the random state that the step left."""
    adapter_step: int | None = None
    adapter_sha256: str | None = None
    tuned: dict[str, float] | None = None
    """Metrics of this seed's tuned model, where the lock is of several seeds."""

    @model_validator(mode="after")
    def _whole(self) -> RunTrace:
        length = self.steps if self.kept is None else len(self.kept)
        if any(len(series) != length for series in (self.loss, self.grad_norm, self.batch, self.draws)):
            raise ValueError(f"every series must have {length} values")
        for text in (*self.loss, *self.grad_norm):
            # raises for a text that is no such number, and the lock is told as damaged
            if text is not None:
                float.fromhex(text)
        return self


class Expected(Part):
    """The results that the inputs of a lock led to: a trace of each seed, and the bands of the metrics."""

    runs: list[RunTrace]
    """One a seed."""
    base: dict[str, Band] = Field(default_factory=dict)
    tuned: dict[str, Band] = Field(default_factory=dict)


class Lock(Part):
    """Everything that a run takes in, and (once it has run) what came out."""

    format: int = FORMAT
    source: str | None = None
    """The recipe that was run, relative to the lock."""
    recipe: dict[str, tuple[Value, str]]
    """Dotted key -> resolved value, and where it came from."""
    seeds: list[int]
    base: BaseLock
    tokenizer: TokenizerLock
    data: DataLock
    init_adapter: AdapterLock | None = None
    """None, and not written, where training starts anew."""
    settings: dict[str, Value] = Field(default_factory=dict)
    """What steers the arithmetic and is no recipe key: attention, determinism flags."""
    packages: dict[str, str] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)
    """A description; differences warn."""
    expected: Expected | None = None
    """Results to compare with; None where nothing has been run yet."""
    digest: str | None = None
    """SHA-256 of all the rest, so that a slip of the hand or of a merge is noticed; None in a lock of an older version."""

    def value(self, key: str) -> Value:
        """The resolved value of a recipe key; None for one that the lock does not have."""
        return self.recipe[key][0] if key in self.recipe else None
