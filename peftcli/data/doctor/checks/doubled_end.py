"""Rows whose text, or answers whose text, ends with the end token already, so that they end with two."""

from __future__ import annotations

from peftcli.data.doctor.base import Check

# counted while rows are encoded
CHECK = Check(
    "fail",
    "texts that spell the end token at their end and get another (take it out of the answer; for documents "
    "`data.append_eos: false` adds none)",
)
