"""Locks as files: where they lie, how they are written, and what a damaged or a stranger's one is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftcli import files
from peftcli.errors import CheckpointError, Fault, RecipeError, StorageError
from peftcli.lock.document import FORMAT, Lock
from peftcli.lock.places import absolute
from peftcli.ownership import in_the_way, text_in_the_way
from peftcli.redaction import redacted_keys, redacted_name, redacted_values
from peftcli.reports.seal import KEY, digest_of, is_broken

# a long run keeps some thousand steps in its trace: about a megabyte
MAX_LOCK_BYTES = 16 << 20
# lines of this width stay whole in a diff on any screen
_INLINE_WIDTH = 100
_SUFFIX = ".lock"
_AGAIN = "put it back as it was, or make it again: peft lock RUN"
_HEAD = '{\n "format": '
"""How every lock begins, a damaged one too."""


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
