"""The folder of a merged model that lies in files: its base's tensors under their names, the merged ones in their places."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from peftcli import folders
from peftcli.jobs.merge_changes import Changes
from peftcli.jobs.merge_config import merged_config
from peftcli.jobs.merge_folder import carried_entry
from peftcli.jobs.merge_shards import Entry, entry_of, stored_entry, write_shards
from peftcli.jobs.merge_witness import failed, named_tensors
from peftcli.models.source import CONFIG_NAME, BaseSource
from peftcli.models.stored import StoredTensor
from peftcli.models.streamed import InFile, StreamedWeight
from peftcli.models.streaming import Place, StreamedBase


def write_streamed(
    staging: folders.StagedFolder, base: StreamedBase, source: BaseSource, changes: Changes, limit: int
) -> int:
    """Weights and `config.json`; returns how many tensors of the base are carried over that its class does not own."""
    live = dict(named_tensors(base.model))
    entries: list[Entry] = []
    carried = 0
    for name, stored in changes.base.items():
        place = base.places.get(name)
        if place is None or place.name not in live:
            entries.append(carried_entry(stored, changes))
            carried += 1
        else:
            entries.append(_placed(name, stored, place, live[place.name], changes))
    there = {place.name for place in base.places.values()}
    shared = {id(live[name]) for name in there if name in live}
    # what shares a tensor with another name and was in no file still does not need to be in one
    new = [name for name in live if name not in there and not (name in base.absent and id(live[name]) in shared)]
    entries += [_whole(name, live[name], changes.type_of(name)) for name in new]
    write_shards(staging, entries, limit)
    staging.write(CONFIG_NAME, merged_config(source, base.model, changes, set(changes.base)))
    return carried


def _placed(name: str, stored: StoredTensor, place: Place, tensor: Tensor, changes: Changes) -> Entry:
    kind = changes.type_of(place.name)
    if _is_from(tensor, stored):
        return stored_entry(name, stored, None if kind == stored.dtype else kind)
    if place.expert is None:
        return _whole(name, tensor, kind)
    expert, first = place.expert, place.first

    def matrix() -> Iterator[Tensor]:
        yield tensor[expert][first : first + stored.shape[0]]

    return entry_of(name, stored.shape, kind, matrix)


def _is_from(tensor: Tensor, stored: StoredTensor) -> bool:
    """Whether the values are those of the base's file still."""
    return isinstance(tensor, StreamedWeight) and isinstance(tensor.held, InFile) and tensor.held.stored is stored


def _whole(name: str, tensor: Tensor, kind: torch.dtype) -> Entry:
    dtype = kind if tensor.is_floating_point() else tensor.dtype

    def pieces() -> Iterator[Tensor]:
        parts = (rows for _, rows in tensor.pieces()) if isinstance(tensor, StreamedWeight) else iter([tensor.detach()])
        for rows in parts:
            if not bool(torch.isfinite(rows.to(dtype)).all()):
                raise failed(
                    "merged weights are not finite", [name], fix="merge with --dtype float32; else train again"
                )
            yield rows

    return entry_of(name, tensor.shape, dtype, pieces)
