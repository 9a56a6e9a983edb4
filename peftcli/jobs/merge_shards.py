"""Weight files written tensor by tensor, so that no file is ever held: a header first, for all sizes are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peftcli import folders
from peftcli.models.stored import TYPE_NAMES, StoredTensor
from peftcli.models.streamed import PIECE
from peftcli.models.weight_files import INDEX_NAME, SINGLE_NAME


@dataclass(frozen=True)
class Entry:
    """One tensor of a file that is to be written."""

    name: str
    dtype: str
    """As the file format names it."""
    shape: tuple[int, ...]
    num_bytes: int
    pieces: Callable[[], Iterable[Tensor]]
    """Its rows in order, in any number of pieces."""
    file: StoredTensor | None = None
    """Where it is read from, if that is a file."""


def entry_of(name: str, shape: Sequence[int], dtype: torch.dtype, pieces: Callable[[], Iterable[Tensor]]) -> Entry:
    """A tensor of a type that has a name here; its pieces are cast to it as they are written."""
    size = torch.Size(shape).numel() * dtype.itemsize
    return Entry(name, TYPE_NAMES[dtype], tuple(shape), size, lambda: (piece.to(dtype) for piece in pieces()))


def tensor_entry(name: str, tensor: Tensor) -> Entry:
    """A tensor in memory, as it is."""
    return entry_of(name, tensor.shape, tensor.dtype, lambda: [tensor.cpu()])


def stored_entry(name: str, stored: StoredTensor, dtype: torch.dtype | None = None) -> Entry:
    """A tensor of another file, in `dtype` where one is given."""
    if dtype is None and stored.dtype is None:
        found = stored.read()
        return Entry(name, stored.type_name, stored.shape, found.nbytes, lambda: [stored.read()], stored)
    kind = dtype or stored.dtype
    assert kind is not None
    made = entry_of(name, stored.shape, kind, lambda: _rows_of(stored))
    return Entry(made.name, made.dtype, made.shape, made.num_bytes, made.pieces, stored)


def _rows_of(stored: StoredTensor) -> Iterator[Tensor]:
    if not stored.shape or 0 in stored.shape:
        yield stored.read()
        return
    step = max(1, PIECE // torch.Size(stored.shape[1:]).numel())
    for start in range(0, stored.shape[0], step):
        yield stored.rows(start, min(stored.shape[0], start + step))


def write_shards(
    staging: folders.StagedFolder,
    entries: Sequence[Entry],
    limit: int,
    written: Callable[[Sequence[Entry]], None] = lambda rest: None,
) -> None:
    """One file, or files of at most `limit` bytes and an index. `written`: told after each file which entries are left."""
    shards = _cut(entries, limit)
    names = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    if len(shards) == 1:
        names = [SINGLE_NAME]
    for position, (name, shard) in enumerate(zip(names, shards, strict=True)):
        staging.write_pieces(name, _file(shard))
        written([entry for later in shards[position + 1 :] for entry in later])
    if len(shards) > 1:
        total = sum(entry.num_bytes for entry in entries)
        weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        staging.write_json(INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _cut(entries: Sequence[Entry], limit: int) -> list[list[Entry]]:
    """Runs of entries of at most `limit` bytes, or of a single larger one."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.num_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.num_bytes
    return shards


def _file(shard: Sequence[Entry]) -> Iterator[memoryview]:
    """The bytes of a safetensors file: length of the header, header, tensors."""
    # wide types first: every tensor then lies at a multiple of its own width
    ordered = sorted(shard, key=lambda entry: -_width(entry))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in ordered:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [end, end + entry.num_bytes],
        }
        end += entry.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for entry in ordered:
        yield from _bytes_of(entry)


def _width(entry: Entry) -> int:
    return entry.num_bytes // max(1, torch.Size(entry.shape).numel())


def _bytes_of(entry: Entry) -> Iterator[memoryview]:
    count = 0
    for piece in entry.pieces():
        flat = piece.detach().contiguous().reshape(-1).view(torch.uint8)
        count += flat.numel()
        yield flat.numpy().data
    # the header is written: more or fewer bytes would shift every tensor after it
    assert count == entry.num_bytes, f"{entry.name}: {count} bytes, {entry.num_bytes} announced"
