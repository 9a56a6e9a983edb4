"""Tensors of the base that an adapter's file brings along: whole embeddings, perhaps of more tokens than the base has.

The reference writes them where embeddings are adapted, where the vocabulary was resized, and where it is told to; when
reading, it puts them in the place of the base's. So it is here, as long as the adapter is switched on: the base's own
tensors are kept aside and come back bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.base import FILE_PREFIX, Entry, Shapes
from peftcli.adapters.oddities import tell
from peftcli.models.structure import input_embedding, output_embedding

_SEGMENTS = ("", "base_layer.")


@dataclass
class _Copy:
    """One tensor of the base and its stand-in."""

    keys: list[str]
    """Its keys in the file; none where only its size was taken from there."""
    original: nn.Parameter
    stand_in: nn.Parameter
    places: list[tuple[nn.Module, str]]
    sizes: list[tuple[Any, str]] = field(default_factory=list)
    """Objects and attributes that state the number of rows."""


class BaseCopies:
    """The stand-ins on one model, put in before anything is wrapped; none without `shapes`."""

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module], shapes: Shapes | None) -> None:
        self._copies: dict[int, _Copy] = {}
        self._in_place = True
        self._model, self._modules = model, modules
        if shapes is None:
            return
        # read before any is replaced: tied tables are one parameter
        found = [(path, name, module._parameters[name]) for path, module, name in _tensors(model, modules)]
        for path, name, parameter in found:
            # plainly, and as the reference names the table under a wrapper
            keys = [f"{FILE_PREFIX}{path}.{segment}{name}" for segment in _SEGMENTS]
            keys = [key for key in keys if key in shapes]
            # of a matrix in the file the rows may be more or fewer, never the width of a row
            if keys and parameter is not None and shapes[keys[0]][1:] == parameter.shape[1:] and shapes[keys[0]]:
                self._take(parameter, keys, shapes[keys[0]][0])

    def _take(self, parameter: nn.Parameter, keys: list[str], rows: int) -> None:
        # the second of two tied tables, which are one parameter: one stand-in serves both
        if id(parameter) in self._copies:
            self._copies[id(parameter)].keys += keys
            return
        places = [
            (module, name)
            for module in self._modules.values()
            for name, other in module._parameters.items()
            if other is parameter
        ]
        # rows that only the file has are read from it afterwards
        value = parameter.new_zeros((rows, *parameter.shape[1:]))
        common = min(rows, len(parameter))
        value[:common] = parameter.detach()[:common]
        copied = _Copy(keys, parameter, nn.Parameter(value, requires_grad=False), places)
        if rows != len(parameter):
            copied.sizes = list(_sizes(self._model, places, len(parameter)))
        self._copies[id(parameter)] = copied
        _swap(copied, stand_in=True)

    def entries(self) -> list[Entry]:
        """What is read from the file, and written again."""
        return [Entry(key, copied.stand_in.detach()) for copied in self._copies.values() for key in copied.keys]

    def leave(self, claimed: Collection[str]) -> None:
        """Leaves tensors to the adapter that trains them under the same key; only their number of rows stays."""
        for number, copied in list(self._copies.items()):
            copied.keys = [key for key in copied.keys if key not in claimed]
            if not copied.keys and len(copied.stand_in) == len(copied.original):
                _swap(self._copies.pop(number), stand_in=False)

    def settle(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """After reading: takes the base's own tensors again where they are the same, and warns where they are not."""
        for copied in self._copies.values():
            if copied.keys and len(copied.stand_in) == len(copied.original):
                if torch.equal(copied.stand_in, copied.original):
                    # the file's values are the base's: one memory for both, so that switching costs nothing
                    copied.stand_in.data = copied.original.data
                else:
                    tell(_difference(copied, tensors[copied.keys[0]]), where=where)
            elif copied.keys:
                rows = f"{len(copied.stand_in):,} rows, the base has {len(copied.original):,}"
                tell(f"`{copied.keys[0]}` has {rows}: the file's are used", where=where)

    def show(self, in_place: bool) -> None:
        """Puts the stand-ins in, or the base's own tensors."""
        if in_place != self._in_place:
            for copied in self._copies.values():
                _swap(copied, stand_in=in_place)
            self._in_place = in_place

    def keep(self) -> None:
        """The stand-ins are the model's own from now on."""
        self._copies.clear()


def _tensors(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module, str]]:
    """Path, module and name of the embeddings' tensors, input before output."""
    for embedding in (input_embedding(model), output_embedding(model)):
        for path, module in modules.items():
            if module is embedding:
                yield from ((path, module, name) for name in ("weight", "bias") if name in module._parameters)


def _sizes(model: nn.Module, places: list[tuple[nn.Module, str]], rows: int) -> Iterator[tuple[Any, str]]:
    config = getattr(model, "config", None)
    configs = (
        [config] if config is None or not hasattr(config, "get_text_config") else [config, config.get_text_config()]
    )
    holders: list[tuple[Any, str]] = [(item, "vocab_size") for item in [model, *configs]]
    holders += [(module, name) for module, _ in places for name in ("num_embeddings", "out_features")]
    yield from ((holder, name) for holder, name in holders if getattr(holder, name, None) == rows)


def _swap(copied: _Copy, *, stand_in: bool) -> None:
    coming, going = (copied.stand_in, copied.original) if stand_in else (copied.original, copied.stand_in)
    # the model may have been moved or cast since
    coming.data = coming.data.to(going.device, going.dtype)
    for module, name in copied.places:
        module._parameters[name] = coming
    for holder, name in copied.sizes:
        setattr(holder, name, len(coming))


def _difference(copied: _Copy, stored: Tensor) -> str:
    own = copied.original.detach()
    # a file in half precision holds the base's values rounded: that is no other base
    rounded = own.to(stored.device, stored.dtype).to(own.dtype)
    if torch.equal(rounded, stored.to(own.dtype)):
        kind = str(stored.dtype).removeprefix("torch.")
        return f"`{copied.keys[0]}` is the base's, rounded to {kind}: used as the file has it"
    rows = int((copied.stand_in != own).reshape(len(own), -1).any(1).sum())
    return (
        f"`{copied.keys[0]}` differs from this base's in {rows:,} of {len(own):,} rows: the file's are used, which is "
        "right if they were trained or the vocabulary was changed, and wrong if this is another base"
    )
