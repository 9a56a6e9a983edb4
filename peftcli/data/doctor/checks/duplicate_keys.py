"""Rows of JSON in which an object has one key twice: the last one counts, as JSON readers do."""

from __future__ import annotations

from peftcli.data.doctor.base import Check

# counted while files are read
CHECK = Check("warn", "objects with the same key twice, of which only the last is read")
