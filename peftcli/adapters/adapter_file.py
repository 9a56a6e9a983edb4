"""The tensors of an adapter file by the keys of one model, read only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
"""Key on disk -> shape, read from a file's header before anything is allocated."""
Header = Mapping[str, tuple[str, tuple[int, ...]]]
"""Key on disk -> (type, shape)."""


@dataclass(frozen=True)
class AdapterFile:
    """Header and tensors of a file, as a method is given them."""

    header: Header
    read: Callable[[], Mapping[str, Tensor]]
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Module path in the file -> path in this model, where transformers renamed it."""

    @property
    def shapes(self) -> Shapes:
        """Key -> shape, in the model's orientation."""
        return {key: shape for key, (_, shape) in self.header.items()}

    def without(self, keys: Iterable[str]) -> AdapterFile:
        """The same without some tensors."""
        dropped = set(keys)
        kept = {key: facts for key, facts in self.header.items() if key not in dropped}
        return replace(
            self, header=kept, read=lambda: {key: tensor for key, tensor in self.read().items() if key in kept}
        )
