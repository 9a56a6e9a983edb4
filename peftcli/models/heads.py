"""The labels that a model's head gives: how many, what they are called, and how they are told. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SINGLE = "single_label_classification"
"""One label applies."""
SEVERAL = "multi_label_classification"
"""Any number of labels apply, none among them."""
MEASURED = "regression"
"""Labels are values."""
PROBLEMS = (SINGLE, SEVERAL, MEASURED)
"""What labels mean, as transformers names it."""


@dataclass(frozen=True)
class LabelHead:
    """`names`: of each output, in order. `problem`: one of `PROBLEMS`, None where the model does not say.

    `seed`: what weights of a head that the base lacks are drawn from; None leaves that to the shared generator.
    """

    names: tuple[str, ...]
    problem: str | None = None
    seed: int | None = None

    @staticmethod
    def unnamed(count: int, problem: str | None = None) -> LabelHead:
        """Labels under the names that transformers gives them."""
        return LabelHead(tuple(f"LABEL_{number}" for number in range(count)), problem)

    @staticmethod
    def of_config(config: Any) -> LabelHead:
        """The labels of a model's configuration."""
        names: Mapping[int, str] = config.id2label
        return LabelHead(tuple(names[number] for number in sorted(names)), getattr(config, "problem_type", None))

    def write_to(self, config: Any) -> None:
        """Puts the labels into a configuration from which a model is then built."""
        config.id2label = dict(enumerate(self.names))
        config.label2id = {name: number for number, name in enumerate(self.names)}
        config.num_labels = len(self.names)
        if self.problem is not None:
            config.problem_type = self.problem

    def numbers(self) -> dict[str, int]:
        """Name -> output."""
        return {name: number for number, name in enumerate(self.names)}

    def to_notes(self) -> dict[str, Any]:
        """As an adapter's own file holds it; `from_notes` reads it back."""
        return {"names": list(self.names), "problem": self.problem, "seed": self.seed}

    @staticmethod
    def from_notes(notes: Any) -> LabelHead | None:
        """The labels that an adapter's file notes; None where it notes none."""
        if not isinstance(notes, Mapping) or not isinstance(names := notes.get("names"), Sequence):
            return None
        problem, seed = notes.get("problem"), notes.get("seed")
        return LabelHead(
            tuple(map(str, names)), problem if problem in PROBLEMS else None, seed if isinstance(seed, int) else None
        )


def settle_padding(model: Any, tokenizer: Any) -> None:
    """A model that judges a row by its last token finds it by the pad token, which decoders seldom name: the
    tokenizer's, so that the saved model can be asked in batches by transformers too."""
    config = model.config
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
