"""A merge of a model that is never held: its weights stay in files, and are read one at a time for what is done to them.

The answers before and after are those of the whole model on real prompts; each module is proven, merged, rounded and put
aside before the next one is read.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from peftcli import files, folders, system
from peftcli.adapters.layers import unwrapped
from peftcli.adapters.merging import merge as merge_one_by_one
from peftcli.adapters.surgery import disabled
from peftcli.jobs.adapter_base import stream_base
from peftcli.jobs.merge_answers import Answers, Reread, logits_of, watching_blocks
from peftcli.jobs.merge_changes import Changes, changes_of
from peftcli.jobs.merge_prompts import joined, meeting_rows
from peftcli.jobs.merge_rounding import Survival, is_finite, measure, random_move
from peftcli.jobs.merge_streamed_folder import write_streamed
from peftcli.jobs.merge_witness import (
    adapted_sites,
    apart,
    digests,
    failed,
    module_at,
    named_tensors,
    parameters_in_use,
    probe,
    projection,
    require_same_bits,
    require_untouched,
)
from peftcli.jobs.opening import OpenModel, open_adapter
from peftcli.models.source import BaseSource
from peftcli.models.stored import StoredTensor
from peftcli.models.streamed import InFile, Seen, StreamedWeight
from peftcli.models.streaming import SMALL, StreamedBase, kept_in_float32, open_streamed
from peftcli.models.structure import input_embedding
from peftcli.models.weights import is_linear, weight_view
from peftcli.runs.locating import Location

LOGITS_BYTES = 16 << 20
"""Of one model's answers: fewer tokens are asked of a model with more of them."""
FEWEST_TOKENS = 32


@dataclass
class StreamedMerge:
    """The steps of a merge, in their order: `answers`, `merge`, `write`, `reread`."""

    opened: OpenModel
    base: StreamedBase
    changes: Changes
    storage: str | None = None
    survival: Survival = field(default_factory=Survival)
    written: dict[str, str] = field(default_factory=dict)
    _in_use: dict[str, Tensor] = field(default_factory=dict)
    _faults: list[str] = field(default_factory=list)
    _broken: list[str] = field(default_factory=list)
    _merged: set[str] = field(default_factory=set)

    @staticmethod
    def open(path: str | Path, base: str | None, dtype: torch.dtype | None) -> StreamedMerge:
        """Base and adapter on the CPU, computed with in float32. Raises `NotStreamed`."""
        system.give_back_freed_memory()
        bases: list[StreamedBase] = []

        def read(
            location: Location, source: BaseSource, *, auto_class: str, dtype: torch.dtype, device: str
        ) -> nn.Module:
            bases.append(stream_base(location, source, auto_class=auto_class, dtype=dtype))
            return bases[0].model

        opened = open_adapter(path, base=base, dtype=torch.float32, device="cpu", read=read)
        return StreamedMerge(opened, bases[0], changes_of(opened, dtype, lambda kind: _kept_apart(opened.model, kind)))

    def answers(self, rows: Sequence[Tensor]) -> Answers:
        """What base + adapter and the base say to the prompts, and to those that meet what was changed."""
        model = self.opened.model
        expected: list[Tensor] = []
        blocks: dict[str, Tensor] = {}

        def run(model: nn.Module, row: Tensor) -> None:
            # each pass reads all weights: it looks at the blocks too, the first time
            seen: contextlib.AbstractContextManager[dict[str, Tensor]]
            seen = contextlib.nullcontext({}) if blocks else watching_blocks(model)
            with seen as found:
                expected.extend(logits_of(model, [row]))
            blocks.update(found)

        prompts = joined(rows, _tokens(model))
        rows, unmet = meeting_rows(model, adapted_sites(model), prompts, together=True, run=run)
        with disabled(model):
            plain = logits_of(model, rows)
        return Answers(rows, unmet, False, expected, plain, blocks)

    # -- merging -----------------------------------------------------------------------------------------------------

    def merge(self, answers: Answers, scratch: Path) -> Survival:
        """Merges module by module: proves that each has the weights that the adapter computes, rounds them to the files'
        types, and puts them aside. Raises `CheckFailed` naming every weight that is not as it should be."""
        model = self.opened.model
        sites = adapted_sites(model)
        may_change = {
            f"{path}.{name}" for path, site in sites.items() for name, _ in unwrapped(site).named_parameters()
        }
        before = digests(model)
        rest = {path: site for path, site in sites.items() if not _can_be_probed(site)}
        self._in_use = parameters_in_use(model, rest, answers.rows) if rest else {}
        with torch.no_grad():
            merge_one_by_one(model, lambda path, module: self._around(path, module, scratch))
        if self._faults:
            raise failed("merged weights are not what the adapter computes", self._faults)
        if self._broken:
            raise failed(
                "merged weights are not finite", self._broken, fix="merge with --dtype float32; else train again"
            )
        self.written = digests(model)
        require_untouched(before, self.written, may_change)
        if self.changes.dtype is not None:
            self._round_small()
            self.base.stream.seen = self._as_written
            self.written = digests(model)
            self.base.stream.seen = None
        return self.survival

    @contextlib.contextmanager
    def _around(self, path: str, module: nn.Module, scratch: Path) -> Iterator[None]:
        """Holds the weights of one module while it is merged, and lets go of them afterwards."""
        outer = module_at(self.opened.model, path)
        table = isinstance(module, nn.Embedding)
        places = {name: (owner, leaf) for name, owner, leaf in _places(path, module)}
        originals = {name: owner._parameters[leaf] for name, (owner, leaf) in places.items()}
        # a table is not held, for its rows are read as they are asked for
        held = {} if table else {name: _in_memory(original) for name, original in originals.items()}
        for name, parameter in held.items():
            owner, leaf = places[name]
            owner._parameters[leaf] = parameter
        before = probe(path, outer, precise=not table) if _can_be_probed(outer) else None
        yield
        kept = {name for name, (owner, leaf) in places.items() if owner._parameters[leaf] is held.get(name)}
        # what was replaced is needed no more, and proving what it became takes the room of two
        held.clear()
        if _can_be_probed(module):
            self._compare(path, before, probe(path, module, precise=not table), 0 if is_linear(module) else 1)
        # again, for a merge may give a layer a bias
        for name, owner, leaf in _places(path, module):
            now = owner._parameters[leaf]
            assert now is not None
            if name in self._in_use:
                found = projection(name, now)
                self._compare(name, self._in_use[name], found, -1 if found.dim() > 1 else None)
            if name in kept or now is originals.get(name):
                owner._parameters[leaf] = originals[name]
            else:
                owner._parameters[leaf] = self._put_aside(name, originals.get(name), now, scratch)
        system.give_back_spare_memory()

    def _compare(self, name: str, before: Tensor | None, after: Tensor | None, axis: int | None) -> None:
        if before is None or after is None or before.shape != after.shape:
            self._faults.append(f"{name} (no answer to compare)")
        elif count := apart(before, after, axis):
            self._faults.append(f"{name} ({count} of its rows)")

    def _put_aside(self, name: str, original: Tensor | None, exact: Tensor, scratch: Path) -> nn.Parameter:
        """The weight in the type of its file, in a file of its own, and what is left of its update."""
        kind = self.changes.type_of(name)
        stored = exact.detach().to(kind)
        if not is_finite(stored):
            self._broken.append(f"{name} ({str(kind).removeprefix('torch.')})")
        elif original is not None:
            measure(self.survival, name, original, exact.detach(), stored, kind)
        self._merged.add(name)
        if exact.numel() <= SMALL:
            return nn.Parameter(stored.to(exact.dtype), requires_grad=False)
        file = scratch / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"
        with files.library_errors(file):
            save_file({"weight": stored.contiguous()}, file)
        held = InFile(StoredTensor("weight", file, kind, tuple(stored.shape)))
        return nn.Parameter(StreamedWeight.of(held, name, self.base.stream), requires_grad=False)

    def _round_small(self) -> None:
        with torch.no_grad():
            for name, tensor in named_tensors(self.opened.model):
                if not isinstance(tensor, StreamedWeight) and tensor.is_floating_point():
                    tensor.copy_(tensor.to(self.changes.type_of(name)))

    def _as_written(self, name: str, rows: Tensor, start: int) -> Tensor:
        return rows.to(self.changes.type_of(name)).to(rows.dtype)

    # -- the folder --------------------------------------------------------------------------------------------------

    def write(self, staging: folders.StagedFolder, limit: int) -> int:
        """Weights and `config.json`; returns how many tensors of the base are carried over that its class does not own."""
        return write_streamed(staging, self.base, self.opened.source, self.changes, limit)

    def reread(self, folder: BaseSource, answers: Answers) -> Reread:
        """What the folder says, its bits having been compared with those that were merged."""
        again = open_streamed(folder, auto_class=self.opened.auto_class)
        require_same_bits(again.model, self.written)
        with watching_blocks(again.model) as blocks:
            found = logits_of(again.model, answers.rows[:1])
        found += logits_of(again.model, answers.rows[1:])
        return Reread(found, self._base_as_written(answers), self._shaken(again, answers), blocks)

    def _base_as_written(self, answers: Answers) -> Sequence[Tensor]:
        if self.changes.dtype in (None, torch.float32):
            return answers.plain
        opened = self.opened
        bare = stream_base(opened.location, opened.source, auto_class=opened.auto_class)
        bare.stream.seen = self._as_written
        return logits_of(bare.model, answers.rows)

    def _shaken(self, again: StreamedBase, answers: Answers) -> list[Tensor]:
        seen = _shaking(self.survival, self.changes)
        again.stream.seen = seen
        with torch.no_grad():
            for name, tensor in named_tensors(again.model):
                if not isinstance(tensor, StreamedWeight) and tensor.is_floating_point():
                    tensor.copy_(seen(name, tensor, 0))
        return logits_of(again.model, answers.rows)

    def as_used(self, folder: BaseSource, kind: torch.dtype, answers: Answers) -> list[Tensor]:
        """What the folder says in the type of its weights."""
        return logits_of(open_streamed(folder, auto_class=self.opened.auto_class, dtype=kind).model, answers.rows)


def _shaking(survival: Survival, changes: Changes) -> Seen:
    """Moves rounded weights by as much again, at random, and the others by the rounding of float32."""
    narrowed = changes.dtype not in (None, torch.float32)

    def seen(name: str, rows: Tensor, start: int) -> Tensor:
        # a seed of its own for each piece: it is moved the same way whenever it is read
        digest = hashlib.sha256(f"{name} {start}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        size = survival.rounded.get(name)
        if size is not None and size.dim() > 0:
            size = size[start : start + len(rows)]
        kind = changes.type_of(name) if narrowed or size is not None else torch.float32
        return rows + random_move(rows, size, kind, generator)

    return seen


def _places(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name in the model, owner and name there of every parameter of a module and of what is inside of it."""
    for inner, owner in module.named_modules():
        for leaf, parameter in owner._parameters.items():
            if parameter is not None:
                yield ".".join(part for part in (path, inner, leaf) if part), owner, leaf


def _in_memory(parameter: Tensor | None) -> nn.Parameter:
    assert parameter is not None
    return nn.Parameter(parameter.detach().to(torch.float32, copy=True), requires_grad=False)


def _can_be_probed(module: nn.Module) -> bool:
    base = unwrapped(module)
    return is_linear(base) or isinstance(base, nn.Embedding)


def _tokens(model: nn.Module) -> int:
    embedding = input_embedding(model)
    rows = 1 if embedding is None else weight_view(unwrapped(embedding)).shape[0]
    return max(FEWEST_TOKENS, LOGITS_BYTES // (4 * rows))


def _kept_apart(model: nn.Module, kind: torch.dtype) -> Callable[[str], bool]:
    pattern = kept_in_float32(model, kind)
    return lambda name: pattern is not None and pattern.search(name) is not None
