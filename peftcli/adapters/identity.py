"""What the base under an adapter is, in a few bytes, whatever the adapter has put on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftcli.adapters.base_modules import base_places
from peftcli.models.added_tokens import own_rows
from peftcli.models.fingerprint import Fingerprint, PackedValues, fingerprint
from peftcli.models.new_heads import new_head_keys
from peftcli.models.storage import storage_of, was_transposed

_KNOWN = "_peftcli_fingerprint"


def base_fingerprint(model: nn.Module) -> Fingerprint:
    """The fingerprint of the base's own parameters. A task head that the base's files do not hold is not the base's: it
    was drawn when the model was loaded, and is another one each time."""
    known = model.__dict__.get(_KNOWN)
    if isinstance(known, Fingerprint):
        return known
    drawn = set(new_head_keys(model))
    return fingerprint((name, _values(module, leaf)) for name, module, leaf in base_places(model) if name not in drawn)


def keep_fingerprint(model: nn.Module, known: Fingerprint) -> None:
    """Notes the fingerprint of a base whose bits no process will have all of."""
    model.__dict__[_KNOWN] = known


def _values(module: nn.Module, leaf: str) -> Tensor | PackedValues:
    storage = storage_of(module)
    if leaf != "weight" or not storage.is_packed:
        return own_rows(module, module.get_parameter(leaf), leaf)
    shape, turned = storage.shape(module), was_transposed(module)
    return PackedValues(
        storage.name,
        shape[::-1] if turned else shape,
        tuple(storage.parts(module).values()),
        lambda: storage.dense(module).T if turned else storage.dense(module),
    )


def type_read_in(model: nn.Module) -> torch.dtype | None:
    """The type of a quantized base's values that are not packed: that in which the packed ones were read, too; None for a
    plain base."""
    counts: dict[torch.dtype, int] = {}
    packed = False
    for _, module, leaf in base_places(model):
        if leaf == "weight" and storage_of(module).is_packed:
            packed = True
        else:
            parameter = module.get_parameter(leaf)
            counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    return max(counts, key=lambda dtype: counts[dtype], default=None) if packed else None
