"""Which of transformers' auto classes opens a model class, read from transformers' own tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import transformers

AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMaskedLM",
    "AutoModel",
)
"""Those that adapters are made for; a class that stands in several tables belongs to the first."""
WRITING = AUTO_CLASSES[:2]
"""Those whose models write text."""


def auto_class_with(class_name: str) -> str | None:
    """The auto class that opens models of a class such as `BertForMaskedLM`; None where transformers has none."""
    return next((name for name in AUTO_CLASSES if class_name in _class_names(name)), None)


def _class_names(auto_class: str) -> Iterator[str]:
    # family -> class name, or several where a family has more than one
    table: Any = getattr(transformers, auto_class)._model_mapping._model_mapping
    for found in table.values():
        yield from (found,) if isinstance(found, str) else found
