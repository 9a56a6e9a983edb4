"""Texts that a row gives as context and its template leaves out (a system message, a tool's result)."""

from __future__ import annotations

from peftcli.data.doctor.base import Check

# counted while conversations are rendered
CHECK = Check("warn", "messages that the chat template leaves out: the model never sees them")
