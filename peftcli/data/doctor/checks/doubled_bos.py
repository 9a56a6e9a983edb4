"""Rows that begin with two BOS tokens."""

from __future__ import annotations

from peftcli.data.doctor.base import Check

# counted while rows are encoded
CHECK = Check("fail", "rows that begin with BOS twice, which no base has seen in pretraining")
