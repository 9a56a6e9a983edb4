"""The folder of a merged model: that of its base, with the changed tensors in their places and nothing lost.

Every file and every tensor of the base that the merge does not change is carried over as it is, also those that the
loaded class has no place for (a vision tower, a second head).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from peftcli import files, folders
from peftcli.errors import StorageError
from peftcli.jobs.merge_changes import Changes
from peftcli.jobs.merge_config import merged_config
from peftcli.jobs.merge_shards import Entry, stored_entry, tensor_entry, write_shards
from peftcli.jobs.merge_witness import TypeOf
from peftcli.models.companions import (
    files_beside_weights,
    same_tokenizer,
    tokenizer_files,
    write_tokenizer,
)
from peftcli.models.sentences import files_of_shape
from peftcli.models.snapshot import snapshot
from peftcli.models.source import CONFIG_NAME, BaseSource
from peftcli.models.stored import StoredTensor, tensors_in
from peftcli.models.tokenizer import load_tokenizer


def write_model(
    staging: folders.StagedFolder, model: nn.Module, source: BaseSource, changes: Changes, limit: int
) -> int:
    """Weights and `config.json`. The model's tensors are given up on the way. Returns how many tensors of the base were
    carried over that the model's class does not own."""
    with staging.scratch() as scratch:
        state = _state(model, changes.type_of)
        model.save_pretrained(scratch, state_dict=dict(state), max_shard_size=limit)  # type: ignore[operator]
        config = merged_config(source, model, changes, set(changes.base))
        model.to("meta")
        saved = tensors_in(sorted(scratch.glob("*.safetensors")))
        copies = {name: state[name] for name in set(changes.base) & set(state) - set(saved)}
        new = _renamed(saved, changes.base)
        carried = [name for name in changes.base if name not in saved and name not in copies and name not in new]
        entries = [stored_entry(name, found) for name, found in saved.items()]
        entries += [tensor_entry(name, tensor) for name, tensor in copies.items()]
        entries += [carried_entry(changes.base[name], changes) for name in carried]

        def written(rest: Sequence[Entry]) -> None:
            needed = {entry.file.file for entry in rest if entry.file is not None}
            for file in scratch.glob("*.safetensors"):
                if file not in needed:
                    file.unlink()

        write_shards(staging, entries, limit, written)
        for leftover in scratch.iterdir():
            leftover.unlink()
    staging.write(CONFIG_NAME, config)
    return len(carried)


def carried_entry(stored: StoredTensor, changes: Changes) -> Entry:
    """A tensor of the base that the merge does not change."""
    return stored_entry(stored.name, stored, changes.type_of_carried(stored))


def _state(model: nn.Module, type_of: TypeOf) -> dict[str, Tensor]:
    """The model's tensors in the types of the files; what is one tensor in the model stays one."""
    cast: dict[int, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in cast:
            plain = tensor.detach()
            cast[id(tensor)] = plain.to(type_of(name)) if plain.is_floating_point() else plain
        found[name] = cast[id(tensor)]
    return found


def _renamed(saved: Mapping[str, StoredTensor], base: Mapping[str, StoredTensor]) -> set[str]:
    """Names of the base's files that stand for a tensor which was saved under another name (a prefix more or less)."""
    unknown = [found for name, found in saved.items() if name not in base]
    return {
        name
        for name, tensor in base.items()
        if name not in saved
        for other in unknown
        if tensor.shape == other.shape and (_is_end(name, other.name) or _is_end(other.name, name))
    }


def _is_end(end: str, name: str) -> bool:
    return end.count(".") > 1 and name.endswith("." + end)


# -- everything else -------------------------------------------------------------------------------------------------


def write_beside(
    staging: folders.StagedFolder, source: BaseSource, adapter: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The files beside the weights; the tokenizer that belongs to the adapter, where it is another than the base's."""
    folder = snapshot(source).folder
    beside = files_beside_weights(folder)
    own = tokenizer_files(adapter)
    if "tokenizer.json" in own and not same_tokenizer(load_tokenizer(source), tokenizer):
        beside = {name: path for name, path in beside.items() if name not in tokenizer_files(folder)}
        write_tokenizer(staging, tokenizer, adapter)
    beside |= files_of_shape(adapter) or files_of_shape(folder)
    for name, path in beside.items():
        staging.copy(path, name)


def require_space(output: Path, model: nn.Module, changes: Changes, limit: int) -> None:
    """Room for the model, what is carried over, and for a while the files that it is put together from."""
    own = sum(t.numel() * changes.type_of(name).itemsize for name, t in model.named_parameters())
    carried = sum(
        torch.Size(found.shape).numel() * (found.dtype or torch.int64).itemsize for found in changes.base.values()
    )
    needed = int(1.05 * (own + max(own, carried) + min(limit, own)))
    free = files.free_bytes(output.absolute())
    if free < needed:
        raise StorageError(
            f"no space for the merged model: {needed:,} bytes are needed, {free:,} are free",
            where=str(output),
            fix="free some space, or choose an --output on another disk",
        )
