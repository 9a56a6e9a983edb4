"""What rounding to the types of the files does to merged weights: how much of the update is left, and how far it moves
the answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from peftcli.jobs.merge_witness import TypeOf, Witness, failed, named_tensors
from peftcli.models.streamed import StreamedWeight

_PIECE = 1 << 17
"""Values that are looked at at once: what is computed on the way stays in the processor's cache, and on the heap."""
_EXPONENT = 0x7F800000
"""The bits of a float32 that hold its exponent."""


@dataclass
class Survival:
    """How much of the exact update of the weights is left in the type of the file."""

    exact: dict[str, float] = field(default_factory=dict)
    """Weight -> squared Frobenius norm of its exact update."""
    kept: dict[str, float] = field(default_factory=dict)
    """Weight -> inner product of the update that the file holds with the exact one."""
    rounded: dict[str, Tensor] = field(default_factory=dict)
    """Weight -> how far rounding moved the values of each of its rows, (rows, 1, ...), 1 for the error of even chance:
    less where the update is small, and nothing where there is none, since the base's own values are those of the type."""

    def share(self) -> float | None:
        """Of all weights together; None where the adapter changes none."""
        return _share(sum(self.kept.values()), sum(self.exact.values()))

    def of(self, name: str) -> float:
        """Of one weight; 1 where the adapter does not change it."""
        found = _share(self.kept[name], self.exact[name])
        return 1.0 if found is None else found

    def worst(self) -> tuple[str, float] | None:
        """The weight of which least is left, among those that carry a tenth of the mean update or more."""
        if not self.exact:
            return None
        enough = 0.1 * sum(self.exact.values()) / len(self.exact)
        name = min((name for name, size in self.exact.items() if size >= enough), key=self.of)
        return name, self.of(name)


def _share(kept: float, exact: float) -> float | None:
    """1 - |1 - kept / exact|: what is made larger by rounding is as wrong as what is lost."""
    return 1.0 - abs(1.0 - kept / exact) if exact > 0.0 else None


@torch.no_grad()
def round_to_file_types(model: nn.Module, seen: Witness, type_of: TypeOf) -> Survival:
    """Link 2: gives every tensor the value that the file will hold, still in float32, and measures what that loses.

    Raises `CheckFailed` for a weight that is not finite, or overflows the type.
    """
    found = Survival()
    broken: list[str] = []
    done: set[int] = set()
    for name, tensor in named_tensors(model):
        if not tensor.is_floating_point() or id(tensor) in done:
            # a shared tensor is rounded once, and measured under its first name
            continue
        done.add(id(tensor))
        # there and back: what follows computes with the values of the file, in its own type
        rounded = tensor.to(type_of(name)).to(tensor.dtype)
        if isinstance(tensor, nn.Parameter) and not bool(torch.isfinite(rounded).all()):
            broken.append(f"{name} ({str(type_of(name)).removeprefix('torch.')})")
        elif name in seen.originals:
            measure(found, name, seen.originals[name].to(tensor.device), tensor, rounded, type_of(name))
        tensor.copy_(rounded)
    if broken:
        raise failed("merged weights are not finite", broken, fix="merge with --dtype float32; else train again")
    return found


def measure(found: Survival, name: str, original: Tensor, exact: Tensor, rounded: Tensor, dtype: torch.dtype) -> None:
    """Notes in `found` how much of one weight's update is left once it is rounded to `dtype`. `original` may lie in a
    file, and `rounded` be of that type."""
    size = kept = 0.0
    moves: list[Tensor] = []
    for before, after, stored in _side_by_side(original, exact, rounded):
        update = after.float() - before.float()
        # where the type is narrower than the base's, the base is rounded too, which is no loss of the update
        left = stored.float() - before.to(dtype).float()
        size += float(update.square().sum(1).double().sum())
        kept += float((update * left).sum(1).double().sum())
        # an error that is even over a unit u has the variance u ** 2 / 12
        chance = unit_in_last_place(after.float(), dtype).norm(dim=1).double() / 12**0.5
        moves.append(((stored.float() - after.float()).norm(dim=1).double() / chance.clamp_min(1e-150)).float())
    if size > 0.0:
        found.exact[name], found.kept[name] = size, kept
        rows = torch.cat(moves)
        # a type that holds the merged values as they are moves them nonetheless: by what their own sum was rounded to
        even = torch.ones_like(rows) if not bool(rows.any()) else rows
        found.rounded[name] = even.reshape(-1, *[1] * (exact.dim() - 1)) if exact.dim() > 1 else even.mean()


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is a number; looked at in float32, in which that is fast."""
    return all(bool(torch.isfinite(piece.float()).all()) for piece in _pieces(tensor))


def _side_by_side(original: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few rows of each."""
    if not isinstance(original, StreamedWeight):
        yield from zip(*map(_pieces, (original, *others)), strict=True)
        return
    for start, rows in original.pieces():
        parts = (rows, *(other[start : start + len(rows)] for other in others))
        yield from zip(*map(_pieces, parts), strict=True)


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor as (rows, values), a number of rows at a time; a vector is one row."""
    flat = tensor.reshape(len(tensor), -1) if tensor.dim() > 1 else tensor.reshape(1, -1)
    yield from flat.split(_rows_at_once(tensor))


def _rows_at_once(tensor: Tensor) -> int:
    width = tensor[0].numel() if tensor.dim() > 1 else tensor.numel()
    return max(1, _PIECE // max(1, width))


def unit_in_last_place(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbouring numbers of `dtype` at each value of a float32 tensor; 0 at zero."""
    # without its fraction a number is the power of two below it, where a unit is eps
    power = (tensor.contiguous().view(torch.int32) & _EXPONENT).view(torch.float32)
    return power.mul_(torch.finfo(dtype).eps)


@torch.no_grad()
def shake(model: nn.Module, sizes: Mapping[str, Tensor], type_of: TypeOf, *, every: bool) -> None:
    """Moves each value of the named tensors at random by up to half a unit in the last place of its file's type, times
    the tensor's size, as rounding did. `every`: the others too, by the rounding of float32, as a forward pass does."""
    # a fixed seed: the proof must come out the same when it is tried again
    generator = torch.Generator().manual_seed(0)
    done: set[int] = set()
    for name, tensor in named_tensors(model):
        if id(tensor) in done or not tensor.is_floating_point() or not (every or name in sizes):
            continue
        done.add(id(tensor))
        kind = type_of(name) if name in sizes else torch.float32
        tensor.add_(random_move(tensor, sizes.get(name), kind, generator))


def random_move(tensor: Tensor, size: Tensor | None, kind: torch.dtype, generator: torch.Generator) -> Tensor:
    """What is added to each value to move it at random by up to half a unit in the last place of `kind`, times `size`."""
    # of each row: `size` has one for all values of a row, or one for all
    shares = [None] if size is None else size.reshape(-1, 1).to(tensor.device).split(_rows_at_once(tensor))
    # the tensor has no room for a part of a unit: a whole one, as often as the part is large
    whole = torch.finfo(kind).eps <= torch.finfo(tensor.dtype).eps
    found = []
    for piece, share in zip(_pieces(tensor), shares if len(shares) > 1 else itertools.cycle(shares), strict=False):
        steps = torch.rand(piece.shape, generator=generator).sub_(0.5).to(tensor.device)
        if share is not None:
            steps *= share
        if whole:
            steps = (steps + torch.rand(piece.shape, generator=generator).to(tensor.device)).floor_()
        found.append(steps.mul_(unit_in_last_place(piece.float(), kind)))
    return torch.cat(found).reshape(tensor.shape)
