"""Rows from which nothing would be learnt."""

from __future__ import annotations

from peftcli.data.doctor.base import Check

# counted where rows are cut to length, since that is where trained tokens vanish
CHECK = Check("fail", "rows without a trained token, in the data or after truncation")
