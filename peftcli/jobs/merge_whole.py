"""A merge of a model that is held whole: small enough, quantized, or read in a way that needs all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from peftcli import folders
from peftcli.adapters.merging import merge as merge_in_memory
from peftcli.adapters.surgery import disabled
from peftcli.errors import MergeError
from peftcli.jobs.adapter_base import load_base
from peftcli.jobs.merge_answers import Answers, Reread, block_outputs, can_compute_in_float64, logits_of
from peftcli.jobs.merge_changes import Changes, changes_of
from peftcli.jobs.merge_folder import write_model
from peftcli.jobs.merge_prompts import meeting_rows
from peftcli.jobs.merge_rounding import Survival, round_to_file_types, shake
from peftcli.jobs.merge_witness import (
    Witness,
    adapted_sites,
    digests,
    in_float64,
    named_tensors,
    require_same_bits,
    require_same_function,
    witness,
)
from peftcli.jobs.opening import OpenModel, open_adapter
from peftcli.models.dequantized import dequantize, storage_name
from peftcli.models.load import load_model
from peftcli.models.source import BaseSource
from peftcli.planning.fit import total_memory_bytes
from peftcli.planning.machine import resolve_device

PRECISE_SHARE = 0.4
"""Of the total memory that may hold a model in float64 while it is compared."""


@dataclass
class WholeMerge:
    """The steps of a merge, in their order: `answers`, `merge`, `write`, `reread`."""

    opened: OpenModel
    storage: str | None
    """How the base was stored in training, where it was packed: its weights are then what they dequantize to."""
    changes: Changes
    seen: Witness | None = None
    survival: Survival | None = None
    written: dict[str, str] | None = None

    @staticmethod
    def open(path: str | Path, base: str | None, dtype: torch.dtype | None) -> WholeMerge:
        """Base and adapter in float32, which holds every type of a base's files exactly, on a device that has the room."""
        opened, storage = _open(path, base, may_dequantize=dtype is not None)
        return WholeMerge(opened, storage, changes_of(opened, dtype, lambda kind: _kept_apart(opened, kind)))

    def answers(self, rows: Sequence[Tensor]) -> Answers:
        """What base + adapter and the base say to the prompts, and to those that meet what was changed."""
        opened = self.opened
        rows, unmet = meeting_rows(opened.model, adapted_sites(opened.model), rows)
        precise = _has_room_for_float64(opened) and can_compute_in_float64(opened.model, rows[0])
        with in_float64(opened.model, precise):
            expected = logits_of(opened.model, rows)
            blocks = block_outputs(opened.model, rows[0])
            with disabled(opened.model):
                plain = logits_of(opened.model, rows)
        return Answers(rows, unmet, precise, expected, plain, blocks)

    def merge(self, answers: Answers, scratch: Path) -> Survival:
        """Merges in memory, proves that the weights are what the adapter computes, and rounds them to the files' types."""
        self.seen = witness(self.opened.model, self.changes.type_of, answers.rows)
        merge_in_memory(self.opened.model)
        require_same_function(self.opened.model, self.seen)
        self.survival = round_to_file_types(self.opened.model, self.seen, self.changes.type_of)
        self.written = digests(self.opened.model)
        return self.survival

    def write(self, staging: folders.StagedFolder, limit: int) -> int:
        """Weights and `config.json`; returns how many tensors of the base are carried over that its class does not own."""
        return write_model(staging, self.opened.model, self.opened.source, self.changes, limit)

    def reread(self, folder: BaseSource, answers: Answers) -> Reread:
        """What the folder says, its bits having been compared with those that were merged."""
        assert self.seen is not None, "merged before"
        assert self.survival is not None
        assert self.written is not None
        opened = self.opened
        model = load_model(folder, dtype=torch.float32, device=opened.device, auto_class=opened.auto_class)
        require_same_bits(model, self.written)
        with in_float64(model, answers.precise):
            found = logits_of(model, answers.rows)
            blocks = block_outputs(model, answers.rows[0])
        ground = _base_as_written(model, self.seen, self.changes, answers)
        return Reread(found, ground, _shaken(model, self.survival, self.changes, answers), blocks)

    def as_used(self, folder: BaseSource, kind: torch.dtype, answers: Answers) -> list[Tensor]:
        """What the folder says in the type of its weights."""
        model = load_model(folder, dtype=kind, device=self.opened.device, auto_class=self.opened.auto_class)
        return logits_of(model, answers.rows)


def _open(path: str | Path, base: str | None, *, may_dequantize: bool) -> tuple[OpenModel, str | None]:
    device = resolve_device("auto")
    opened = open_adapter(path, base=base, dtype=torch.float32, device="cpu")
    storage = storage_name(opened.model)
    if storage is not None and not may_dequantize:
        raise MergeError(
            f"the base is stored as {storage}: merged into it, the sum would be rounded to {storage} again",
            where=str(path),
            fix="add --dtype bfloat16: the merged model then holds the dequantized weights that were trained on",
        )
    if storage is not None:
        dequantize(opened.model, torch.float32)
        opened = replace(opened, model=opened.model.float(), dtype=torch.float32)
    needed = 6 * sum(parameter.numel() for parameter in opened.model.parameters())
    if device != "cuda" or needed > total_memory_bytes(device):
        return opened, storage
    opened.model.to(device)
    return replace(opened, device=device), storage


def _kept_apart(opened: OpenModel, dtype: torch.dtype) -> Callable[[str], bool]:
    model = load_base(opened.location, opened.source, auto_class=opened.auto_class, dtype=dtype)
    kept = frozenset(name for name, tensor in named_tensors(model) if tensor.dtype == torch.float32)
    return lambda name: name in kept


def _has_room_for_float64(opened: OpenModel) -> bool:
    """In float64 the rounding of the forward pass itself, which says nothing about the merge, is out of the way."""
    needed = 8 * sum(parameter.numel() for parameter in opened.model.parameters())
    return needed < PRECISE_SHARE * total_memory_bytes(opened.device)


@torch.no_grad()
def _base_as_written(model: nn.Module, seen: Witness, changes: Changes, answers: Answers) -> Sequence[Tensor]:
    """Answers of the base in the types of the folder: what remains when the adapter is taken out of `model` again."""
    if changes.dtype in (None, torch.float32):
        return answers.plain
    tensors = {name: tensor for name, tensor in named_tensors(model) if name in seen.originals}
    merged = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        tensor.copy_(seen.originals[name].to(changes.type_of(name)))
    with in_float64(model, answers.precise):
        found = logits_of(model, answers.rows)
    for name, tensor in tensors.items():
        tensor.copy_(merged[name])
    return found


def _shaken(model: nn.Module, survival: Survival, changes: Changes, answers: Answers) -> list[Tensor]:
    """Answers once the weights that were rounded are moved by as much again, at random. Spoils the model."""
    narrowed = changes.dtype not in (None, torch.float32)
    others = {name: torch.ones(()) for name, _ in named_tensors(model)} if narrowed else {}
    # in float64, where a float32 has room for a part of a unit
    with in_float64(model, answers.precise):
        shake(model, {**others, **survival.rounded}, changes.type_of, every=not answers.precise)
        return logits_of(model, answers.rows)
