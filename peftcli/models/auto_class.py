"""What a model is for: transformers' auto classes, the names of model classes, and what adapter files call it.

Stated here once, since adapters of other tools come for every purpose, those that no task here trains for included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn


@dataclass(frozen=True)
class Purpose:
    """Models that one auto class opens."""

    auto_class: str
    endings: tuple[str, ...]
    """How names of their classes end."""
    task_type: str | None
    """`task_type` in the reference's `adapter_config.json`; None where it has none."""
    writes: bool = False
    """Whether they write text."""
    labels: bool = False
    """Whether a head gives labels, drawn at random unless it is saved with the adapter."""


WRITES_ON = Purpose("AutoModelForCausalLM", ("ForCausalLM", "LMHeadModel"), "CAUSAL_LM", writes=True)
"""Goes on with a text; what a model without a name is taken for."""
REWRITES = Purpose("AutoModelForSeq2SeqLM", ("ForConditionalGeneration",), "SEQ_2_SEQ_LM", writes=True)
"""Has an encoder for what is read and a decoder that writes."""
FEATURES = Purpose("AutoModel", (), "FEATURE_EXTRACTION")
"""Has no head: its states are what is wanted."""
PURPOSES = (
    WRITES_ON,
    REWRITES,
    Purpose("AutoModelForSequenceClassification", ("ForSequenceClassification",), "SEQ_CLS", labels=True),
    Purpose("AutoModelForTokenClassification", ("ForTokenClassification",), "TOKEN_CLS", labels=True),
    Purpose("AutoModelForQuestionAnswering", ("ForQuestionAnswering",), "QUESTION_ANS"),
    Purpose("AutoModelForMaskedLM", ("ForMaskedLM",), None),
    FEATURES,
)
AUTO_CLASSES = tuple(purpose.auto_class for purpose in PURPOSES)
"""Those that adapters are made for; a class that stands in several tables belongs to the first."""
WRITING = tuple(purpose.auto_class for purpose in PURPOSES if purpose.writes)
"""Those whose models write text."""
LABELLING = tuple(purpose.auto_class for purpose in PURPOSES if purpose.labels)
"""The classes whose models give labels."""
CLASS_OF_TASK_TYPE = {purpose.task_type: purpose.auto_class for purpose in PURPOSES if purpose.task_type}
"""The reference's task types."""


def purpose_named(class_name: str) -> Purpose | None:
    """The purpose that the name of a model class ends with; None where it ends with none."""
    # `endswith` of an empty tuple is False, so `AutoModel`, which opens anything, never matches here
    return next((purpose for purpose in PURPOSES if class_name.endswith(purpose.endings)), None)


def purpose_of(model: nn.Module) -> Purpose | None:
    """What a model is for, as the reference names it: a head of labels counts, then an encoder, then a head of tokens, and
    no head at all."""
    named = purpose_named(type(model).__name__)
    if named is not None and named.labels:
        return named
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return REWRITES
    if named is None and type(model).__name__ in _class_names(FEATURES.auto_class):
        return FEATURES
    return named if named is WRITES_ON else None


def auto_class_with(class_name: str) -> str | None:
    """The auto class that opens models of a class such as `BertForMaskedLM`; None where transformers has none."""
    return next((name for name in AUTO_CLASSES if class_name in _class_names(name)), None)


def _class_names(auto_class: str) -> Iterator[str]:
    # family -> class name, or several where a family has more than one
    # private, for transformers offers no public way from a class back to its family
    table: Any = getattr(transformers, auto_class)._model_mapping._model_mapping
    for found in table.values():
        yield from (found,) if isinstance(found, str) else found
