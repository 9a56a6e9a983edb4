"""Fields of OFT (arXiv:2306.07280, in the form of arXiv:2506.19847), under the names of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftcli.adapters.file_values import SHARE, Bounds
from peftcli.adapters.target_config import TARGET_DEFAULTS, TargetedConfig
from peftcli.errors import FieldFault


class OftConfig(TargetedConfig):
    """Each layer's input is rotated block by block; angles between neurons stay as they are."""

    name: ClassVar[str] = "oft"
    summary: ClassVar[str] = "orthogonal rotation of each layer's input, block by block"
    peft_type: ClassVar[str] = "OFT"
    in_peft: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 2.5e-3
    size_fields: ClassVar[tuple[str, ...]] = ("r", "oft_block_size")
    file_defaults: ClassVar[Mapping[str, Any]] = {
        **TARGET_DEFAULTS,
        "r": 0,
        "oft_block_size": 32,
        "module_dropout": 0.0,
        "fan_in_fan_out": False,
        "bias": "none",
        "init_weights": True,
        "coft": False,
        "eps": 6e-5,
        "block_share": False,
        "use_cayley_neumann": True,
        "num_cayley_neumann_terms": 5,
    }
    file_bounds: ClassVar[Mapping[str, Bounds]] = {"module_dropout": SHARE}

    r: Annotated[int, Field(ge=0)] = 0
    """Number of blocks a layer; 0: as many as `oft_block_size` makes. Give one of the two."""
    oft_block_size: Annotated[int, Field(ge=0)] = 32
    """Size of a block; where it does not divide a layer's input, the nearest size that does. 0: as `r` makes it."""
    module_dropout: Annotated[int | float, Field(ge=0, lt=1)] = 0.0
    """Chance that a block is left unrotated, while training."""
    bias: Literal["none", "all", "oft_only"] = "none"
    """Which of the base's biases are trained too."""
    init_weights: bool = True
    """Start without rotation, as the base; false starts at random."""
    coft: bool = False
    """Keep the rotation within `eps` of none (constrained OFT)."""
    eps: Annotated[int | float, Field(gt=0, allow_inf_nan=False)] = 6e-5
    """How far a constrained rotation may go."""
    block_share: bool = False
    """One rotation for all blocks of a layer."""
    use_cayley_neumann: bool = True
    """Build rotations from a short series instead of solving a system: faster, orthogonal for small angles only."""
    num_cayley_neumann_terms: Annotated[int, Field(ge=1)] = 5
    """Terms of that series."""

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if (self.r == 0) == (self.oft_block_size == 0):
            raise FieldFault("give either r (with oft_block_size: 0) or oft_block_size (with r: 0)")
        if self.oft_block_size == 1:
            raise FieldFault("oft_block_size: 1 rotates nothing", "use 2 or more")
        return self
