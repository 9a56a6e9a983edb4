"""Answers whose stop token is not trained: the model would never learn to end them."""

from __future__ import annotations

from peftcli.data.doctor.base import Check

# counted while rows are encoded, since only there is the end of an answer known
CHECK = Check("fail", "answers without a trained stop token: generation would never end")
