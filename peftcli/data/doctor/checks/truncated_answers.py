"""Answers that lose their end, or part of it, to `max_length`."""

from __future__ import annotations

from peftcli.data.doctor.base import Check

# counted where rows are cut to length
CHECK = Check("warn", "trained tokens lost to truncation: the model learns answers without their end")
