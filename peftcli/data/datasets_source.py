"""Datasets of the Hugging Face `datasets` library: saved folders and Hub ids; the only place that knows its errors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.data.faults import FaultLog
from peftcli.data.names import nearest
from peftcli.data.readers.arrow_values import plain_row
from peftcli.data.readers.base import CHUNK_ROWS, Chunk
from peftcli.data.sources import FileFacts
from peftcli.errors import DataError, HubError, StorageError

_STATE_LIMIT_BYTES = 16 << 20


class _Dataset:
    """Rows of one split that `datasets` has opened (memory-mapped by it)."""

    name: str
    split: str

    @property
    def names(self) -> Sequence[str]:
        return (f"{self.name}[{self.split}]",)

    def by_row(self, file: int) -> bool:
        return True

    @cached_property
    def _rows(self) -> Any:
        raise AssertionError("a subclass opens the rows")

    @cached_property
    def _json_columns(self) -> list[str]:
        """Columns that hold JSON as such: what is null there was null in the row."""
        # by its name: older versions of `datasets` have no such class to import
        return [name for name, feature in self._rows.features.items() if type(feature).__name__ == "Json"]

    def chunks(self, file: int, faults: FaultLog, after: int = 0) -> Iterator[Chunk]:
        yield from self._chunks(after)
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        """Raises `DataError` where what was read is not what was hashed."""

    def _chunks(self, after: int) -> Iterator[Chunk]:
        # brings numpy, for which checking a recipe does not wait
        from peftcli.data.readers.unpacked import Unpacked

        # `with_format(None)`: whatever format was saved with the dataset, the values are plain Python
        rows = self._rows.with_format(None)
        if not len(rows):
            raise DataError("the split holds no rows", where=self.names[0])
        stored = self._rows.with_format("arrow")
        # the size on disk bounds what the rows may unpack to
        size = sum(Path(entry["filename"]).stat().st_size for entry in rows.cache_files)
        unpacked = Unpacked(self.names[0], size, rows=after)
        for start in range(after, len(rows), CHUNK_ROWS):
            for batch in stored[start : start + CHUNK_ROWS].to_batches():
                unpacked.look_at(batch)
            columns = rows[start : start + CHUNK_ROWS]
            names = list(columns)
            count = len(columns[names[0]])
            cells = zip(*columns.values(), strict=True)
            found = [plain_row(dict(zip(names, row, strict=True)), self._json_columns) for row in cells]
            yield Chunk(found, list(range(start + 1, start + count + 1)))


class SavedDataset(_Dataset):
    """A folder written by `save_to_disk`."""

    def __init__(self, name: str, path: Path, split: str | None) -> None:
        self.name = name
        self.path = path
        self.split = split or "train"
        self._asked = split
        self._seen: list[FileFacts] | None = None

    @cached_property
    def _folder(self) -> Path:
        if not (self.path / "dataset_dict.json").is_file():
            if self._asked is not None:
                raise DataError(f"{self.name} is one dataset without splits", fix="leave `split` out")
            return self.path
        splits = sorted(entry.name for entry in self.path.iterdir() if (entry / "state.json").is_file())
        if self.split not in splits:
            raise DataError(
                f"{self.name} has no split {self.split!r}{nearest(self.split, splits)}",
                where=str(self.path),
                fix=f"its splits: {', '.join(splits)}",
            )
        return self.path / self.split

    def _check_files(self) -> None:
        """The rows lie in the folder itself, in regular files: `state.json` could name any."""
        state = self._folder / "state.json"
        try:
            document = json.loads(files.read_bounded(state, limit_bytes=_STATE_LIMIT_BYTES))
            names = [entry["filename"] for entry in document["_data_files"]]
            # a plain name, in the folder: neither `..` nor an absolute path leads elsewhere
            inside = all(Path(name).name == name and (self._folder / name).is_file() for name in names)
        except (StorageError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{self.name} is not a whole saved dataset", where=str(state), fix="save it again"
            ) from error
        if not inside:
            raise DataError(
                f"{self.name} names files that do not lie in its folder", where=str(state), fix="save it again"
            )

    @cached_property
    def _rows(self) -> Any:
        import datasets

        self._check_files()
        try:
            return datasets.load_from_disk(str(self._folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"not a whole saved dataset: {' '.join(str(error).split())[:160]}", where=str(self.path)
            ) from error

    def facts(self) -> list[FileFacts]:
        """The files of the split with their hashes; `datasets`' own caches are none."""
        found = sorted(
            file for file in self._folder.rglob("*") if file.is_file() and not file.name.startswith("cache-")
        )
        self._seen = [FileFacts(str(file), file.stat().st_size, files.sha256_file(file)) for file in found]
        return self._seen

    def _check_unchanged(self) -> None:
        # `datasets` maps the files itself: they are hashed once more after the last row
        if self._seen is not None and self._seen != self.facts():
            raise DataError("the dataset changed while it was read", where=self.names[0], fix="run again")


class HubDataset(_Dataset):
    """A split of a Hub dataset at a revision, from the Hub or the local cache."""

    def __init__(self, name: str, split: str, revision: str | None) -> None:
        self.name = name
        self.split = split
        self.revision = revision

    @cached_property
    def _rows(self) -> Any:
        import datasets

        with _hub_errors(self):
            return datasets.load_dataset(self.name, split=self.split, revision=self.revision)

    def facts(self) -> list[FileFacts]:
        """One entry for the split, pinned by revision, fingerprint and number of rows."""
        rows = self._rows
        # the library's fingerprint and the number of rows: the files themselves may lie on the Hub
        pinned = f"{self.name}@{self.revision or 'default'}[{self.split}] {rows._fingerprint} {len(rows)}"
        return [FileFacts(self.names[0], int(rows.data.nbytes), files.sha256_bytes(pinned.encode()))]


@contextlib.contextmanager
def _hub_errors(dataset: HubDataset) -> Iterator[None]:
    """Not found, gated, offline and unreadable each have an error of their own."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except DatasetNotFoundError as error:
        # the library has one class for all three cases; only its text tells them apart
        text = str(error).lower()
        if "gated" in text:
            raise HubError(
                f"the dataset {dataset.name} is gated", fix="accept its terms on the Hub and set HF_TOKEN"
            ) from error
        if "revision" in text and dataset.revision:
            raise HubError(
                f"the dataset {dataset.name} has no revision {dataset.revision!r}", fix="check `revision`"
            ) from error
        raise HubError(
            f"the dataset {dataset.name} is not on the Hub, or is private",
            fix="check the name; for a file write ./ in front; set HF_TOKEN for a private one",
        ) from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise HubError(
            f"the dataset {dataset.name} is not in the local cache and the Hub cannot be reached",
            fix="connect once, or give a file; a path starts with ./ or /",
        ) from error
    except (DatasetGenerationError, DatasetsError, ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"the dataset {dataset.name} cannot be read: {reason}") from error
