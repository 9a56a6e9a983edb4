"""Fields of P-tuning (arXiv:2103.10385), under the names of `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftcli.adapters.prompt_config import PROMPT_FILE_DEFAULTS, PromptConfig
from peftcli.errors import FieldFault


class PTuningConfig(PromptConfig):
    """Trains a small network that makes the embeddings of virtual tokens; the adapter holds what it makes."""

    name: ClassVar[str] = "p_tuning"
    summary: ClassVar[str] = "token embeddings in front of the input, made by a trained MLP or LSTM"
    peft_type: ClassVar[str] = "P_TUNING"
    in_peft: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 1e-2
    file_defaults: ClassVar[Mapping[str, Any]] = {
        **PROMPT_FILE_DEFAULTS,
        "encoder_reparameterization_type": "MLP",
        "encoder_hidden_size": None,
        "encoder_num_layers": 2,
        "encoder_dropout": 0.0,
    }

    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    """The network: MLP (two hidden layers) or LSTM (both directions, then one hidden layer)."""
    encoder_hidden_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Width of the network's hidden layers; default: the width of the token embedding."""
    encoder_num_layers: Annotated[int, Field(ge=1, le=100)] = 2
    """Layers of the LSTM; the MLP always has two hidden layers."""
    encoder_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout between the layers of the LSTM, while training."""

    @classmethod
    def idle_fields(cls, document: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the LSTM beside an MLP, and dropout between layers of an LSTM that has one."""
        if document.get("encoder_reparameterization_type") != "LSTM":
            return {"encoder_num_layers": 2, "encoder_dropout": 0.0}
        return {"encoder_dropout": 0.0} if document.get("encoder_num_layers") == 1 else {}

    @model_validator(mode="after")
    def _network_uses_its_fields(self) -> Self:
        lstm = self.encoder_reparameterization_type == "LSTM"
        if not lstm and self.encoder_num_layers != 2:
            raise FieldFault("`encoder_num_layers` is for `encoder_reparameterization_type: LSTM`, the MLP has 2")
        if self.encoder_dropout and not (lstm and self.encoder_num_layers > 1):
            raise FieldFault(
                "`encoder_dropout` acts between the layers of an LSTM: it needs LSTM with 2 layers or more"
            )
        return self
