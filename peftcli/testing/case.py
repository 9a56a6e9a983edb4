"""A method on a family, as the checks run it: fresh, attached, trained; what a check found; inputs that suit the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.base import InitContext
from peftcli.adapters.surgery import adapter_of, attach
from peftcli.testing.families import VOCAB, is_classifier, is_encoder_decoder, tiny_model


@dataclass(frozen=True)
class Case:
    """A method section, as in a recipe, on a family. `perturb`: scale of the noise that stands for training."""

    section: Mapping[str, Any]
    family: str
    perturb: float = 0.05
    model: Callable[[], nn.Module] | None = field(default=None, compare=False)

    def fresh(self) -> nn.Module:
        """The model without an adapter, built again."""
        return self.model() if self.model is not None else tiny_model(self.family)

    def context(self, seed: int = 0) -> InitContext:
        """Everything that a start may ask for, on synthetic rows."""

        def batches() -> list[dict[str, Tensor]]:
            return [inputs_for(tiny_model(self.family), seed=10 + index, labels=True) for index in range(2)]

        def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            found: Tensor = model(**batch).loss
            return found

        return InitContext(torch.Generator().manual_seed(seed), tokenizer=None, batches=batches, loss=loss)

    def attached(self, seed: int = 0) -> nn.Module:
        """With the adapter at its start."""
        model = self.fresh()
        attach(model, dict(self.section), context=self.context(seed))
        return model

    def trained(self) -> nn.Module:
        """With an adapter that has left its start, as after training."""
        model = self.attached()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in adapter_of(model).trainable_parameters().values():
                # on the CPU: the same noise on every device
                noise = torch.empty(parameter.shape).normal_(0.0, self.perturb, generator=generator)
                parameter.add_(noise.to(parameter.device))
        return model


@dataclass(frozen=True)
class Outcome:
    """What one check found. `skipped` gives the reason why it does not apply."""

    check: str
    case: Case
    skipped: str | None = None
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return self.error is None


def inputs_for(
    model: nn.Module, *, seed: int = 1, length: int = 9, rows: int = 2, labels: bool = False
) -> dict[str, Tensor]:
    """Unpadded rows that suit the model: ids, mask, decoder ids for an encoder-decoder, labels on request."""
    generator = torch.Generator().manual_seed(seed)
    # from 4: the ids of pad, begin and end are below, and no row holds them by chance
    ids = torch.randint(4, VOCAB, (rows, length), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    # another length than the encoder's, so that the two cannot be mixed up unnoticed
    decoder_ids = torch.randint(4, VOCAB, (rows, 6), generator=generator)
    if is_encoder_decoder(model):
        inputs["decoder_input_ids"] = decoder_ids
    if labels:
        inputs |= {"labels": _labels(model, ids, decoder_ids, rows)}
        # with labels a model makes its decoder's input itself
        inputs.pop("decoder_input_ids", None)
    return inputs


def _labels(model: nn.Module, ids: Tensor, decoder_ids: Tensor, rows: int) -> Tensor:
    if is_classifier(model):
        return torch.arange(rows) % 3
    return decoder_ids if is_encoder_decoder(model) else ids


def logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The model's logits without a graph, (batch, length, vocabulary) or (batch, labels)."""
    with torch.no_grad():
        found: Tensor = model(**inputs).logits
    return found


def loss_of(model: nn.Module, seed: int = 1) -> Tensor:
    """The model's own loss on random inputs of that seed, a scalar with its graph."""
    found: Tensor = model(**inputs_for(model, seed=seed, labels=True)).loss
    return found
