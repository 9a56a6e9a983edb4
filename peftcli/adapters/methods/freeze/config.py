"""Fields of freeze tuning."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from peftcli.adapters.config import Kind, MethodConfig

DEFAULT_BLOCKS = 2


class FreezeConfig(MethodConfig):
    """Trains some of the base's own modules whole and freezes the rest: its last blocks, or those that are named."""

    name: ClassVar[str] = "freeze"
    summary: ClassVar[str] = "trains the base's last blocks, or named modules, whole"
    kind: ClassVar[Kind] = "selection"
    peft_type: ClassVar[str] = "FREEZE"
    learning_rate: ClassVar[float] = 4e-3
    block_fields: ClassVar[tuple[str, ...]] = ("num_layers",)
    # whole matrices under Adam: the best rate falls with the width itself (arXiv:2203.03466)
    learning_rate_exponent: ClassVar[float] = 1.0

    num_layers: Annotated[int, Field(ge=0)] | None = None
    """Number of last blocks to train (of each stack, where there are an encoder and a decoder); default: 2, or none
    where target_modules are named."""
    target_modules: str | list[str] | None = None
    """Modules to train, beside the last blocks where num_layers is given: names, paths, or one regular expression."""
    exclude_modules: str | list[str] | None = None
    """Modules inside them to leave frozen."""
    modules_to_save: list[str] | None = None
    """Modules trained whole beside them, e.g. a head: with `num_layers: 0` nothing else is."""

    @property
    def num_blocks(self) -> int:
        """Last blocks to train, the default resolved."""
        if self.num_layers is not None:
            return self.num_layers
        return DEFAULT_BLOCKS if self.target_modules is None else 0
