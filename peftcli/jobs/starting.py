"""What a first recipe needs to know of somebody's own rows: their format, their columns, how long they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peftcli.data.asking import bounded
from peftcli.data.config import DataConfig, SourceConfig, held_out
from peftcli.data.format import UnnamedColumns
from peftcli.data.preview import SourceParts, read_parts
from peftcli.data.suggest import line_of as written_columns
from peftcli.errors import DataError, ModelError
from peftcli.models.source import BaseSource, read_model_config, resolve_base
from peftcli.models.tokenizer_trial import require_bounded_tokenizer
from peftcli.tasks.registry import task as find_task
from peftcli.tasks.registry import task_names

ROWS_LOOKED_AT = 2000
CHARACTERS_A_TOKEN = 3.0
"""Of a text in most languages, on the careful side; used where the base's tokenizer is not at hand."""
_TEMPLATE_TOKENS = 16
"""What a chat template writes around a row, roughly."""
_LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_QUANTILE = 0.99


@dataclass(frozen=True)
class FirstLook:
    """Rows of a file as a recipe would describe them."""

    format: str
    why: str
    rows: int
    """Rows looked at."""
    max_length: int
    """Tokens that hold 99 of 100 rows, a round number, at most the base's context."""
    measured: bool
    """Whether the base's own tokenizer counted, or characters were."""
    columns: Mapping[str, str]
    """Parts of the format -> the columns that play them, where those have other names."""

    @property
    def held_out(self) -> str:
        """How many rows the recipe will not train on, in words."""
        if self.rows >= ROWS_LOOKED_AT:
            return "a share of them is held out"
        return f"{held_out(self.rows) or 'none'} of them held out"


def look_at(path: Path, base: str, starter: str, tasks: Mapping[str, str]) -> FirstLook:
    """A first look at a data file for a base. Raises `DataError` as `peft data` does; loads no weights.

    `starter`: whose recipe it is for; `tasks`: what each starter learns.

    A base that is not on this machine is not asked for: lengths then come from characters.
    """
    try:
        parts, columns = _parts(path), dict[str, str]()
    # columns with other names than a format's: read again under the names that were guessed
    except UnnamedColumns as usual:
        parts, columns = _parts(path, format=usual.format, columns=usual.columns), usual.columns
    if not parts.rows:
        raise DataError("the file has no rows", where=str(path), fix="put one row on each line")
    if parts.format not in find_task(tasks[starter]).formats:
        raise _other_starter(path, parts, starter, tasks)
    texts = ["".join(span.text for span in row.spans) for row in parts.rows]
    lengths, measured = _lengths(texts, base)
    wanted = math.ceil(float(np.quantile(lengths, _QUANTILE)) + _TEMPLATE_TOKENS)
    longest = next((length for length in _LENGTHS if length >= wanted), _LENGTHS[-1])
    context = _context_of(base)
    why = f"{written_columns(columns)}: look whether that is right" if columns else parts.why
    return FirstLook(parts.format, why, len(texts), min(longest, context or longest), measured, columns)


def _other_starter(path: Path, parts: SourceParts, starter: str, tasks: Mapping[str, str]) -> DataError:
    """Rows that the starter's task does not train on."""
    names = [name for name in task_names() if parts.format in find_task(name).formats]
    if not names:
        return DataError(
            f"rows of the format {parts.format} cannot be trained on yet ({parts.why})",
            where=str(path),
            fix="convert them to one of prompt-completion, messages, instruction or text",
        )
    others = [name for name, task in tasks.items() if task in names]
    if others:
        return DataError(
            f"the starter `{starter}` has no use for rows of the format {parts.format} ({parts.why})",
            where=str(path),
            fix=" or ".join(f"peft init {name} --data {path}" for name in others[:2]),
        )
    return DataError(
        f"rows of the format {parts.format} ({parts.why}) need `task: {names[0]}`, which has no starter",
        where=str(path),
        fix=f"write the recipe: task: {names[0]}, model, data, method, a line each",
    )


def _parts(path: Path, **named: Any) -> SourceParts:
    config = DataConfig(train=SourceConfig(path=str(path.absolute()), rows=ROWS_LOOKED_AT, **named), validation=0)
    # paths of `peft init` are relative to where one stands
    (parts,) = read_parts(config, folder=Path.cwd(), limit=ROWS_LOOKED_AT)
    return parts


def _lengths(texts: list[str], base: str) -> tuple[np.ndarray, bool]:
    tokenizer = _tokenizer_of(base)
    if tokenizer is None:
        return np.array([len(text) / CHARACTERS_A_TOKEN for text in texts]), False
    # no special tokens: `_TEMPLATE_TOKENS` stands for whatever surrounds a row
    encode = tokenizer.encode_batch
    found = bounded(lambda: encode(texts, add_special_tokens=False), size=sum(map(len, texts)))
    return np.array([len(each.ids) for each in found]), True


def _here(base: str) -> BaseSource | None:
    """The base where it is a folder of this machine or ships with the package."""
    source = resolve_base(base, folder=Path.cwd())
    return source if source.folder is not None else None


def _tokenizer_of(base: str) -> Any | None:
    source = _here(base)
    if source is None or source.folder is None or not (source.folder / "tokenizer.json").is_file():
        return None
    from tokenizers import Tokenizer

    require_bounded_tokenizer(source.folder / "tokenizer.json", source.name)
    try:
        return Tokenizer.from_file(str(source.folder / "tokenizer.json"))
    except Exception as error:  # the library raises a bare Exception for every fault of the file
        raise ModelError(
            f"the tokenizer cannot be read: {str(error)[:200]}", where=str(source.folder), fix="get the base again"
        ) from error


def _context_of(base: str) -> int | None:
    source = _here(base)
    if source is None or source.folder is None:
        return None
    config = read_model_config(source.folder)
    # models of text and images keep the text part's facts in a section
    limit = (config.get("text_config") or config).get("max_position_embeddings")
    return limit if isinstance(limit, int) and limit > 0 else None
