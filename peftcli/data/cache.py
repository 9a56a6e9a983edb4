"""The token cache: encoded sources on disk, found by the content of everything that they depend on.

An entry is a folder of raw arrays and one JSON file, built aside and renamed, checked against its manifest whenever it
is opened, then memory-mapped. Its name is a hash of the data's bytes, the tokenizer, the template, the recipe keys that
decide tokens and weights, and `FORMAT`; nothing else in a recipe changes it. The cache of `datasets` is no such thing: its
names are hashes of pickled functions, which another release changes though the rows are the same.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from peftcli import files, folders
from peftcli.data.doctor.base import Tallies, Tally
from peftcli.data.source_data import SourceData
from peftcli.data.sources import FileFacts
from peftcli.data.store import TokenColumns
from peftcli.data.value_cache import FOLDER as VALUES
from peftcli.errors import StorageError

FORMAT = 7
_META = "source.json"
_ARRAYS = {
    "tokens": np.int32,
    "weights": np.float32,
    "length": np.int64,
    "file": np.int32,
    "line": np.int64,
    "key": np.uint64,
    "sketch": np.uint32,
    "parts": np.int32,
    "label": np.int32,
}
_META_LIMIT_BYTES = 64 << 20
_KEY = re.compile(r"[0-9a-f]{64}")


def default_cache_dir() -> Path:
    """`$PEFTCLI_CACHE`, else `peftcli` in the user's cache folder."""
    if named := os.environ.get("PEFTCLI_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peftcli"


def content_key(*facts: Any) -> str:
    """A hash of plain facts, of our format and of the library that encodes."""
    body = json.dumps([FORMAT, metadata.version("tokenizers"), *facts], sort_keys=True, ensure_ascii=True)
    return files.sha256_bytes(body.encode())


@dataclass(frozen=True)
class CacheSummary:
    """What a cache holds."""

    folder: Path
    entries: int
    bytes: int


class TokenCache:
    """Entries under one folder. Safe for several processes at once: the first to finish an entry wins.

    A cache saves time and no more: a folder that cannot be read or written is told in `warning`, and nothing is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._tokens = folder / "tokens"
        self._reviews = folder / "reviews"
        self.folder = folder
        self.warning: str | None = None

    def load(self, key: str, names: Sequence[str], inputs: Sequence[FileFacts]) -> SourceData | None:
        """The entry, memory-mapped, under today's file names; None when there is none. A damaged one is removed."""
        path = self._path(key)
        try:
            if not path.is_dir():
                return None
            # before mapping: reading past the end of a mapped file that was cut short would end the process by a signal
            folders.verify_manifest(path)
            meta = json.loads(files.read_bounded(path / _META, limit_bytes=_META_LIMIT_BYTES))
            return _from_folder(path, meta, key, names, inputs)
        except (ValueError, KeyError, TypeError, FileNotFoundError):
            with self._telling():
                folders.remove_folder(path)
        except (StorageError, OSError) as error:
            self._tell(error)
        return None

    def save(self, data: SourceData) -> None:
        """Writes an entry; when another process has written it meanwhile, theirs stays."""
        path = self._path(data.identity)
        try:
            with folders.staged_folder(path, manifest={"kind": "tokens"}) as staging:
                for name, array in _arrays(data).items():
                    staging.write(f"{name}.bin", np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                staging.write_json(_META, _meta(data))
        except (StorageError, OSError) as error:
            if not path.exists():
                self._tell(error)

    def load_review(self, key: str) -> Tallies | None:
        """What the checks that compare rows saw on exactly these rows; None where that is not what was written."""
        try:
            body = json.loads(files.read_bounded(self._reviews / f"{key}.json", limit_bytes=_META_LIMIT_BYTES))
            if body["digest"] != content_key(body["tallies"]):
                return None
            return tallies_from(body["tallies"])
        except (StorageError, ValueError, KeyError, TypeError):
            return None

    def save_review(self, key: str, tallies: Tallies) -> None:
        """Keeps what the checks that compare rows saw."""
        with self._telling():
            body = tallies_to(tallies)
            files.write_json(self._reviews / f"{key}.json", {"digest": content_key(body), "tallies": body})

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (StorageError, OSError) as error:
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        self.warning = self.warning or (
            f"the token cache {self.folder} cannot be used ({error}): rows are encoded again in every run; "
            "name a folder that can be written with PEFTCLI_CACHE"
        )

    def summary(self) -> CacheSummary:
        """How many entries there are, and their size."""
        paths = self._owned()
        found = [inner for path in paths for inner in (path.rglob("*") if path.is_dir() else (path,))]
        sizes = sum(path.stat().st_size for path in found if path.is_file())
        return CacheSummary(self.folder, sum(path.parent.parent == self._tokens for path in paths), sizes)

    def clear(self) -> CacheSummary:
        """Removes every entry and what killed builds left, and nothing else; returns what was there."""
        before = self.summary()
        for path in self._owned():
            files.remove_path(path)
        return before

    def _owned(self) -> list[Path]:
        """What a cache wrote, by its names: the folder may be one that holds other things too."""
        entries = [path for path in self._tokens.glob("[0-9a-f][0-9a-f]/*") if _is_ours(path.name)]
        single = [*self._reviews.glob("*"), *(self.folder / VALUES).glob("*")]
        return [*entries, *(path for path in single if _is_ours(path.name.removesuffix(".json")))]

    def _path(self, key: str) -> Path:
        # in 256 folders, since some file systems list a folder of very many entries slowly
        return self._tokens / key[:2] / key


def _is_ours(name: str) -> bool:
    return _KEY.fullmatch(name) is not None or files.is_temporary(Path(name))


def _arrays(data: SourceData) -> dict[str, np.ndarray]:
    return {
        "tokens": data.columns.tokens,
        "weights": data.columns.weights,
        "length": data.length,
        "file": data.file,
        "line": data.line,
        "key": data.key,
        "sketch": data.sketch,
        "parts": data.columns.parts,
        "label": data.label,
    }


def _meta(data: SourceData) -> dict[str, Any]:
    return {
        "shapes": {name: list(array.shape) for name, array in _arrays(data).items()},
        "names": list(data.names),
        "inputs": [asdict(each) for each in data.inputs],
        "format": data.format,
        "why": data.why,
        "joins": data.joins,
        "rows_read": data.rows_read,
        "dropped": data.dropped,
        "tallies": tallies_to(data.tallies),
        "seconds": data.seconds,
        "from_before": data.columns.from_before,
        "label_sets": data.label_sets,
    }


def _from_folder(
    path: Path, meta: dict[str, Any], key: str, names: Sequence[str], inputs: Sequence[FileFacts]
) -> SourceData:
    arrays = {name: _mapped(path / f"{name}.bin", dtype, meta["shapes"][name]) for name, dtype in _ARRAYS.items()}
    # the same bytes may lie under another name than when they were encoded; messages name today's
    today = dict(zip(meta["names"], names, strict=True))
    tallies = {(check, today[file]): tally for (check, file), tally in tallies_from(meta["tallies"]).items()}
    return SourceData(
        TokenColumns(arrays["tokens"], arrays["weights"], arrays["parts"], meta["from_before"]),
        arrays["length"],
        arrays["file"],
        arrays["line"],
        arrays["key"],
        arrays["sketch"],
        tuple(names),
        tuple(inputs),
        meta["format"],
        meta["why"],
        meta["joins"],
        meta["rows_read"],
        meta["dropped"],
        tallies,
        meta["seconds"],
        key,
        arrays["label"],
        tuple(map(tuple, meta["label_sets"])),
    )


def _mapped(path: Path, dtype: Any, shape: list[int]) -> np.ndarray:
    count = int(np.prod(shape, dtype=np.int64))
    if path.stat().st_size != count * np.dtype(dtype).itemsize:
        raise ValueError(f"{path.name} has a size that does not match its shape")
    if count == 0:
        return np.empty(shape, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=tuple(shape))


def tallies_to(tallies: Tallies) -> list[dict[str, Any]]:
    """Hits of checks as a JSON list, for the cache; `tallies_from` reads it back."""
    return [{"check": check, "file": file, **asdict(tally)} for (check, file), tally in tallies.items()]


def tallies_from(body: list[dict[str, Any]]) -> Tallies:
    """Hits of checks from the list that `tallies_to` made."""
    return {(each["check"], each["file"]): Tally(each["count"], each["rows"], each["message"]) for each in body}
