"""Validation rows that are trained on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from peftcli.data.doctor.base import Check, Hit, Review


def review(data: Review) -> Iterable[Hit]:
    if data.validation is None:
        return
    validation, train = data.validation, data.train
    for row in np.flatnonzero(np.isin(validation.key, train.key)).tolist():
        original = int(np.flatnonzero(train.key == validation.key[row])[0])
        yield validation.hit(row, f"a validation row that is trained on too: {train.place(original)}")


CHECK = Check("warn", "validation rows that are also training rows", review=review)
