"""What the base under an adapter is, in a few bytes, whatever the adapter has put on it."""

from __future__ import annotations

from torch import Tensor, nn

from peftcli.adapters.layers import base_places
from peftcli.models.fingerprint import Fingerprint, PackedValues, fingerprint
from peftcli.models.load import new_head_keys
from peftcli.models.storage import storage_of, was_transposed


def base_fingerprint(model: nn.Module) -> Fingerprint:
    """The fingerprint of the base's own parameters. A task head that the base's files do not hold is not the base's: it
    was drawn when the model was loaded, and is another one each time."""
    drawn = set(new_head_keys(model))
    return fingerprint((name, _values(module, leaf)) for name, module, leaf in base_places(model) if name not in drawn)


def _values(module: nn.Module, leaf: str) -> Tensor | PackedValues:
    storage = storage_of(module)
    if leaf != "weight" or not storage.is_packed:
        return module.get_parameter(leaf)
    shape, turned = storage.shape(module), was_transposed(module)
    return PackedValues(
        storage.name,
        shape[::-1] if turned else shape,
        tuple(storage.parts(module).values()),
        lambda: storage.dense(module).T if turned else storage.dense(module),
    )
