"""What is read is what was hashed: a file swapped or rewritten in between is refused, and poisons nothing."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftcli.data import prepare as preparing
from peftcli.data.cache import TokenCache
from peftcli.data.config import DataConfig
from peftcli.data.datasets_source import SavedDataset
from peftcli.data.faults import FaultLog
from peftcli.data.readers import verified
from peftcli.data.readers.containers import read_file
from peftcli.data.readers.verified import BLOCK_BYTES, VerifiedFile, hash_file
from peftcli.data.sources import LocalFiles, resolve
from peftcli.errors import DataError

ROWS = [{"text": f"row {number:06d} of the file that is there"} for number in range(400)]

OTHERS = [{"text": row["text"].replace("7", "9")} for row in ROWS]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def zipped(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), compresslevel=0, mtime=0))


def listed(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows))


def table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("text\n" + "".join(row["text"] + "\n" for row in rows))


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, compression="none", use_dictionary=False)


def arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.feather

    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), path, compression="uncompressed")


KINDS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "rows.jsonl": jsonl, "rows.jsonl.gz": zipped, "rows.json": listed, "rows.csv": table, "rows.txt": table,
    "rows.parquet": parquet, "rows.arrow": arrow, "rows.feather": arrow,
}  # fmt: skip


def swapped_in_place(path: Path) -> None:
    """Other content of the same size, with the same times and number, written into the same file."""
    status, data = path.stat(), path.read_bytes()
    changed = data.replace(b"000007", b"999999")
    assert changed != data
    assert len(changed) == len(data)
    with path.open("r+b") as stream:
        stream.write(changed)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_is_read_as_it_was_hashed(
    tmp_path: Path, name: str, make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    KINDS[name](tmp_path / name, ROWS)
    config = DataConfig(train=name, validation=0)
    cache = tmp_path / "cache"

    def prepared() -> Any:
        return preparing.prepare(config, tokenizer=make_tokenizer(), folder=tmp_path, seed=0, cache_dir=cache)

    hashed = LocalFiles.facts

    def swapped_behind_the_hash(self: LocalFiles) -> Any:
        found = hashed(self)
        status = (tmp_path / name).stat()
        KINDS[name](tmp_path / name, OTHERS)
        assert (tmp_path / name).stat().st_size == status.st_size
        os.utime(tmp_path / name, ns=(status.st_atime_ns, status.st_mtime_ns))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "facts", swapped_behind_the_hash)
        with pytest.raises(DataError, match="changed while it was read"):
            prepared()
    assert TokenCache(cache).summary().entries == 0, "nothing is kept under the old hash"
    swapped = prepared().facts.train.stream_sha256
    KINDS[name](tmp_path / name, ROWS)
    assert prepared().facts.train.stream_sha256 != swapped, "each content has its own tokens"


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_stays_gives_every_row(tmp_path: Path, name: str) -> None:
    from peftcli.data.faults import FaultLog

    KINDS[name](tmp_path / name, ROWS)
    source = resolve(DataConfig(train=name, validation=0).train_sources[0], tmp_path)
    for hashes in (False, True):
        if hashes:
            source.facts()
        rows = [row for chunk in source.chunks(0, FaultLog()) for row in chunk.rows]
        texts = [row["text"] for row in rows]
        assert texts[-400:] == [row["text"] for row in ROWS]


def test_a_stream_that_is_rewritten_while_it_is_read_ends_there(
    tmp_path: Path, make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftcli.data.stream import RowStream
    from peftcli.data.tokens import TokenizerFacts

    monkeypatch.setattr(verified, "BLOCK_BYTES", 4096)
    monkeypatch.setattr("peftcli.data.stream.BLOCK_ROWS", 32)
    jsonl(tmp_path / "rows.jsonl", ROWS)
    config = DataConfig(train="rows.jsonl", validation=0, streaming=True)
    stream = RowStream(config, TokenizerFacts.of(make_tokenizer()), tmp_path, 0, 4)
    at = stream.block(stream.start()).next
    data = (tmp_path / "rows.jsonl").read_bytes()
    status = (tmp_path / "rows.jsonl").stat()
    with (tmp_path / "rows.jsonl").open("r+b") as file:
        file.write(data.replace(b"000390", b"999999"))
    os.utime(tmp_path / "rows.jsonl", ns=(status.st_atime_ns, status.st_mtime_ns))

    def go_on() -> None:
        here = at
        for _ in range(20):
            here = stream.block(here).next

    with pytest.raises(DataError, match="changed while it was read"):
        go_on()


def test_a_saved_dataset_is_hashed_again_behind_its_last_row(tmp_path: Path) -> None:
    import datasets

    from peftcli.data.faults import FaultLog

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    source = SavedDataset("saved", tmp_path / "saved", None)
    source.facts()
    assert sum(len(chunk.rows) for chunk in source.chunks(0, FaultLog())) == 400
    chunks = source.chunks(0, FaultLog())
    next(chunks)
    (data,) = (tmp_path / "saved").glob("*.arrow")
    swapped_in_place(data)
    with pytest.raises(DataError, match="changed while it was read"):
        list(chunks)


# -- the reader itself -------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(verified, "BLOCK_BYTES", 16)
    (tmp_path / "file").write_bytes(bytes(range(100)))
    return tmp_path / "file"


def test_any_place_is_read_as_from_the_file_itself(file: Path) -> None:
    with VerifiedFile(file, hash_file(file), "file") as stream, file.open("rb") as plain:
        for offset, whence, count in ((0, 0, 7), (90, 0, 50), (-3, 2, 10), (5, 0, 0), (15, 0, 2), (0, 2, 4), (1, 1, 9)):
            assert stream.seek(offset, whence) == plain.seek(offset, whence)
            wanted = plain.read(count)
            found = b""
            while len(found) < count and (piece := stream.read(count - len(found))):
                found += piece
            assert found == wanted
            assert stream.tell() == plain.tell()


def test_the_hash_is_that_of_the_whole_file(file: Path) -> None:
    import hashlib

    assert hash_file(file).sha256 == hashlib.sha256(bytes(range(100))).hexdigest()
    assert len(hash_file(file).blocks) == 7


@pytest.mark.parametrize("change", ["one bit of the last block", "one byte more", "one byte less", "empty"])
def test_every_change_is_seen(file: Path, change: str) -> None:
    hashed = hash_file(file)
    data = file.read_bytes()
    changed = {
        "one bit of the last block": data[:-1] + bytes([data[-1] ^ 1]),
        "one byte more": data + b"x",
        "one byte less": data[:-1],
        "empty": b"",
    }[change]
    file.write_bytes(changed)
    with (
        VerifiedFile(file, hashed, "rows.jsonl") as stream,
        pytest.raises(DataError, match=r"changed while(.|\n)*rows"),
    ):
        stream.readall()


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_columns_that_span_hashed_blocks_are_read_whole(kind: str, tmp_path: Path) -> None:
    """A column of 3 MB lies in several blocks of the hash, and is asked for in one reading."""
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("pyarrow.feather")
    texts = [f"{number:06d}" * 500 for number in range(1_000)]
    path, table = tmp_path / f"rows.{kind}", pyarrow.table({"text": texts})
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path, compression="none", use_dictionary=False)
    else:
        pyarrow.feather.write_feather(table, str(path), compression="uncompressed")
    assert path.stat().st_size > 2 * BLOCK_BYTES
    chunks = read_file(path, str(path), FaultLog(), hashed=hash_file(path))
    assert [row["text"] for chunk in chunks for row in chunk.rows] == texts
