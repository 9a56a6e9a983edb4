"""Thoughts that a row gives and its template leaves out: nothing of them is learnt."""

from __future__ import annotations

from peftcli.data.doctor.base import Check

# counted while conversations are rendered
CHECK = Check("warn", "thoughts that the chat template leaves out, so that they are not trained")
