"""Validation rows that are trained on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from peftcli.data.doctor.base import Check, Hit, Review, trained_on

GRAVE_SHARE = 0.5
"""Of the validation rows: from here on the figures would be about rows learned by heart."""


def review(data: Review) -> Iterable[Hit]:
    """A hit for every validation row that is trained on, with the training row."""
    if data.validation is None:
        return
    validation, train = data.validation, data.train
    for row in trained_on(data):
        original = int(np.flatnonzero(train.key == validation.key[row])[0])
        yield validation.hit(row, f"a validation row that is trained on too: {train.place(original)}")


def grave(data: Review) -> bool:
    """Whether half of the validation rows or more are trained on."""
    rows = 0 if data.validation is None else len(data.validation.key)
    return rows > 0 and len(trained_on(data)) >= GRAVE_SHARE * rows


CHECK = Check(
    "warn", "validation rows that are also training rows; half of them or more stop the run", review=review, grave=grave
)
