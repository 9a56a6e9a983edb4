"""What the base under an adapter is, in a few bytes, whatever the adapter has put on it."""

from __future__ import annotations

from torch import nn

from peftcli.adapters.layers import named_base_parameters
from peftcli.models.fingerprint import Fingerprint, fingerprint
from peftcli.models.load import new_head_keys


def base_fingerprint(model: nn.Module) -> Fingerprint:
    """The fingerprint of the base's own parameters. A task head that the base's files do not hold is not the base's: it
    was drawn when the model was loaded, and is another one each time."""
    drawn = set(new_head_keys(model))
    return fingerprint((name, parameter) for name, parameter in named_base_parameters(model) if name not in drawn)
