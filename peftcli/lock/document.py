"""The lock as a document: JSON that is small, stable under git, and names no host, user or secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from peftcli import files
from peftcli.errors import CheckpointError, Fault, RecipeError, StorageError
from peftcli.lock.places import absolute
from peftcli.ownership import in_the_way, text_in_the_way
from peftcli.redaction import redacted_keys, redacted_name, redacted_values
from peftcli.reports.seal import KEY, digest_of, is_broken

FORMAT = 1
LOCK_NAME = "recipe.lock"
"""The lock that a run writes into its folder."""
# a long run keeps some thousand steps in its trace: about a megabyte
MAX_LOCK_BYTES = 16 << 20
# lines of this width stay whole in a diff on any screen
_INLINE_WIDTH = 100
_SUFFIX = ".lock"
_AGAIN = "put it back as it was, or make it again: peft lock RUN"
_HEAD = '{\n "format": '
"""How every lock begins, a damaged one too."""

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


def lock_path(recipe: Path) -> Path:
    """The lock of X.yaml is X.lock beside it. Raises `RecipeError` for a recipe that has this very name."""
    if recipe.suffix.lower() == _SUFFIX:
        raise RecipeError(
            "a recipe cannot be named like a lock: its own lock would be this file",
            where=str(recipe),
            fix=f"rename it: {recipe.stem}.yaml",
        )
    return recipe.with_suffix(_SUFFIX)


def require_own_lock(path: Path, recipe: Path) -> None:
    """Raises `StorageError` where the place of a recipe's lock is taken by another tool's file, or another recipe's lock.

    A damaged lock of ours gives way.
    """
    text = text_in_the_way(path)
    if not text:
        return
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
        if not text.startswith(_HEAD):
            raise in_the_way(path) from None
    if document is None:
        return
    if not isinstance(document, dict) or not {"format", "recipe", "base", "data"} <= set(document):
        raise in_the_way(path)
    # the lock says of which recipe it is; one of another recipe of that stem is no leftover of this one
    source = document.get("source")
    other = absolute(source, path.absolute().parent) if isinstance(source, str) else None
    taken = (
        other is not None
        and other.is_file()
        and not _is_same(other, recipe)
        and other.with_suffix(_SUFFIX) == path.absolute()
    )
    if taken:
        raise StorageError(
            f"this is the lock of {other}, and would be that of {recipe.name} as well",
            where=str(path),
            fix=f"rename {recipe.name}: each recipe needs a name of its own before the suffix",
        )


def _is_same(one: Path, other: Path) -> bool:
    return one == other.absolute() or (other.is_file() and one.samefile(other))


def read_lock(path: Path) -> Lock:
    """Reads a lock. Raises `CheckpointError` where it is damaged, changed since it was written, or of another format."""
    try:
        value = json.loads(files.read_bounded(path, limit_bytes=MAX_LOCK_BYTES))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError("the lock is not JSON", where=str(path), fix=_AGAIN) from error
    if isinstance(value, dict) and value.get("format") != FORMAT:
        raise CheckpointError(
            f"the lock has format {value.get('format')!r}, this peftcli reads {FORMAT}",
            where=str(path),
            fix="make it again: peft lock RUN",
        )
    try:
        lock = Lock.model_validate(value)
    except ValidationError as error:
        faults = [
            Fault(f"{'.'.join(map(str, item['loc']))}: {item['msg']}"[:300], str(path), _AGAIN)
            for item in error.errors(include_url=False)
        ]
        raise CheckpointError("the lock is damaged", faults=faults) from error
    if is_broken(value):
        raise CheckpointError(
            "the lock is not what was written: something in it differs from what its digest was made of",
            where=str(path),
            fix=_AGAIN,
        )
    # it is of this text, not of what is made from it
    return lock.model_copy(update={"digest": None})


def write_lock(path: Path, lock: Lock) -> None:
    """Writes a lock, the same bytes for the same facts."""
    document = _masked(lock).model_dump(mode="json")
    if document["init_adapter"] is None:
        del document["init_adapter"]
    for run in (document["expected"] or {}).get("runs", ()):
        if run["tuned"] is None:
            # of a single seed it would say again what the bands say
            del run["tuned"]
    files.write_text(path, render(document | {KEY: digest_of(document)}))


def _masked(lock: Lock) -> Lock:
    """The lock without credentials: paths and recipe values may hold one, hashes and numbers do not."""
    sources = [
        source.model_copy(update={"name": redacted_name(source.name), "files": redacted_keys(source.files)})
        for source in lock.data.sources
    ]
    return lock.model_copy(
        update={
            "source": redacted_values(lock.source),
            "recipe": {
                key: (redacted_values(value), redacted_name(origin)) for key, (value, origin) in lock.recipe.items()
            },
            "base": lock.base.model_copy(update={"name": redacted_name(lock.base.name)}),
            "data": lock.data.model_copy(update={"sources": sources}),
            "init_adapter": None
            if lock.init_adapter is None
            else lock.init_adapter.model_copy(update={"name": redacted_name(lock.init_adapter.name)}),
        }
    )


def render(document: dict[str, Any]) -> str:
    """JSON with one fact a line; series stay on one line."""
    return _rendered(document, "") + "\n"


def _rendered(value: Any, indent: str) -> str:
    plain = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # the document itself always spans lines, however short, so that git shows single facts
    if not value or (len(plain) + len(indent) <= _INLINE_WIDTH and indent):
        return plain
    if isinstance(value, dict):
        inner = indent + " "
        lines = [
            f"{inner}{json.dumps(key, ensure_ascii=False)}: {_rendered(item, inner)}" for key, item in value.items()
        ]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        inner = indent + " "
        return "[\n" + ",\n".join(inner + _rendered(item, inner) for item in value) + f"\n{indent}]"
    # a list of numbers or texts is one series: broken over lines it would be thousands
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
