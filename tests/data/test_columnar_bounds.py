"""Bounds on columnar files refuse no honest ones: what their pages and buffers say is what is read, in every layout."""

from __future__ import annotations

import io
import random
import string
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from peftcli.data.faults import FaultLog
from peftcli.data.readers.arrow_messages import bodies_of
from peftcli.data.readers.base import Reading
from peftcli.data.readers.columnar import read_arrow, read_parquet
from peftcli.data.readers.parquet_pages import pages_of
from peftcli.errors import DataError

RANDOM = random.Random(3)
TABLE = pyarrow.table(
    {
        "text": ["".join(RANDOM.choices(string.ascii_lowercase, k=40)) for _ in range(5_000)],
        "kind": pyarrow.array([str(number % 3) for number in range(5_000)]).dictionary_encode(),
        "list": [[number] * (number % 4) for number in range(5_000)],
        "null": pyarrow.nulls(5_000, pyarrow.int32()),
    }
)
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"compression": "zstd"},
    {"compression": "gzip", "data_page_version": "2.0"},
    {"compression": "none", "use_dictionary": False},
    {"compression": "snappy", "write_page_index": True, "write_page_checksum": True},
    {"compression": "lz4", "row_group_size": 700, "data_page_size": 1_000},
]


def reading(path: Path) -> Reading:
    return Reading(path, path.name, FaultLog())


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: " ".join(map(str, layout.values())) or "default")
def test_the_pages_are_those_of_the_footer(layout: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(TABLE, path, **layout)
    facts = pyarrow.parquet.ParquetFile(path).metadata
    raw = io.BytesIO(path.read_bytes())
    for group in range(facts.num_row_groups):
        for number in range(facts.num_columns):
            column = facts.row_group(group).column(number)
            pages = list(pages_of(raw, column))
            assert sum(page.num_values for page in pages) == column.num_values
            # the footer counts the headers as well
            headers = column.total_uncompressed_size - sum(page.num_bytes for page in pages)
            assert 10 * len(pages) < headers < 200 * len(pages)
            assert sum(page.packed_bytes for page in pages) + headers == column.total_compressed_size
    assert [row for chunk in read_parquet(reading(path)) for row in chunk.rows] == TABLE.to_pylist()


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
@pytest.mark.parametrize("make", [pyarrow.ipc.new_file, pyarrow.ipc.new_stream])
def test_the_buffers_are_those_of_the_batches(compression: str | None, make: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    with make(path, TABLE.schema, options=pyarrow.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(TABLE, max_chunksize=1_000)
    with path.open("rb") as raw:
        bodies = list(bodies_of(raw, path.stat().st_size))
    if compression is None:
        assert bodies == []
    else:
        assert len(bodies) == 6, "the dictionary and five batches"
        assert sum(body.packed_bytes for body in bodies) < path.stat().st_size
        assert abs(sum(body.num_bytes for body in bodies) - TABLE.nbytes) < 0.05 * TABLE.nbytes
    assert [row for chunk in read_arrow(reading(path)) for row in chunk.rows] == TABLE.to_pylist()


def test_rows_that_share_a_long_text_are_read(tmp_path: Path) -> None:
    """240 MB of rows in a file of kilobytes, a thousand times its size."""
    prompt = " ".join(RANDOM.choices(string.ascii_letters, k=40_000))
    table = pyarrow.table({"system": [prompt] * 3_000, "user": [f"order {number}" for number in range(3_000)]})
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(table, path, compression="zstd")
    assert 3_000 * len(prompt) > 1_000 * path.stat().st_size
    count = 0
    for chunk in read_parquet(reading(path)):
        assert all(row["system"] == prompt for row in chunk.rows)
        count += len(chunk.rows)
    assert count == 3_000


def test_columns_of_one_value_and_of_none_are_read(tmp_path: Path) -> None:
    count = 1_000_000
    columns = {f"c{number}": pyarrow.nulls(count, pyarrow.int64()) for number in range(16)}
    columns["source"] = pyarrow.array(["web"]).take(pyarrow.nulls(count, pyarrow.int8()).fill_null(0))
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert count * 8 * 17 > 100 * path.stat().st_size
    assert next(read_parquet(reading(path))).rows[0] == {**dict.fromkeys(list(columns)[:16]), "source": "web"}


@pytest.mark.parametrize("place", [4, 5, 6, 8, 12])
def test_a_damaged_header_is_told(place: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(TABLE, path)
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError):
        list(read_parquet(reading(path)))
