"""Fields of ReFT (arXiv:2404.03592)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from peftcli.adapters.config import Kind, MethodConfig
from peftcli.errors import FieldFault


class ReftConfig(MethodConfig):
    """Edits the hidden states after chosen blocks within a low-rank subspace; starts as the identity."""

    name: ClassVar[str] = "reft"
    summary: ClassVar[str] = "low-rank edits of the hidden states after each block"
    kind: ClassVar[Kind] = "layers"
    peft_type: ClassVar[str] = "REFT"
    learning_rate: ClassVar[float] = 1e-2
    size_fields: ClassVar[tuple[str, ...]] = ("r",)
    short_names: ClassVar[Mapping[str, Mapping[str, Any]]] = {"loreft": {}}

    r: Annotated[int, Field(ge=1)] = 8
    """Dimension of the subspace that is edited."""
    prefix_positions: Annotated[int, Field(ge=1)] | None = None
    """Edit the first n tokens of a row, padding not counted; with neither this nor suffix_positions every token is
    edited."""
    suffix_positions: Annotated[int, Field(ge=1)] | None = None
    """Edit the last n tokens of a row, padding not counted. Not for models that continue their input: while they are
    trained, prompt and answer are one row, and the prompt's end is not known."""
    layers_to_transform: int | list[int] | None = None
    """Only after these blocks, by number; an encoder's blocks count before a decoder's."""
    reft_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the edit, while training."""
    modules_to_save: list[str] | None = None
    """Modules trained whole beside the edits, e.g. a classification head; saved with them."""

    @property
    def everywhere(self) -> bool:
        """Whether every token is edited."""
        return self.prefix_positions is None and self.suffix_positions is None

    @model_validator(mode="after")
    def _some_layer(self) -> Self:
        if self.layers_to_transform == []:
            raise FieldFault("`layers_to_transform` is empty: name at least one block")
        return self
