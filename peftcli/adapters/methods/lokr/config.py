"""Fields of LoKr (arXiv:2309.14859), under the names of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftcli.adapters.lycoris_config import LYCORIS_DEFAULTS, LycorisConfig
from peftcli.errors import FieldFault


class LokrConfig(LycorisConfig):
    """The update is a Kronecker product of a small matrix and a larger, possibly low-rank one."""

    name: ClassVar[str] = "lokr"
    summary: ClassVar[str] = "Kronecker product of a small and a low-rank matrix"
    peft_type: ClassVar[str] = "LOKR"
    in_peft: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 3e-2
    file_defaults: ClassVar[Mapping[str, Any]] = {
        **LYCORIS_DEFAULTS,
        "decompose_both": False,
        "decompose_factor": -1,
        "rank_dropout_scale": False,
    }

    r: Annotated[int, Field(ge=1)] = 8
    """Rank of the larger factor; a factor is kept whole where r is half its size or more."""
    rank_dropout_scale: bool = False
    """Make up for the outputs left out by scaling the others."""
    decompose_both: bool = False
    """Give the smaller factor a low-rank form too."""
    decompose_factor: int = -1
    """Size of the smaller factor where it divides the layer; -1: as square as the layer allows."""
    init_weights: bool | Literal["lycoris"] = True
    """Start as the base, the smaller factor zero (true) or the larger one (lycoris); false starts at random."""

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.decompose_factor != -1 and self.decompose_factor < 1:
            raise FieldFault("decompose_factor is -1 or at least 1")
        if self.rank_dropout_scale and not self.rank_dropout:
            raise FieldFault("rank_dropout_scale has no effect without rank_dropout")
        return self

    @classmethod
    def idle_fields(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        """`rank_dropout_scale` where there is no `rank_dropout` to scale."""
        return {} if document.get("rank_dropout") else {"rank_dropout_scale": False}
