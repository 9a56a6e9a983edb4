"""Answers without a thought where the recipe says what is to become of thoughts: the key changes nothing in them."""

from __future__ import annotations

from peftcli.data.doctor.base import Check

# counted while rows are encoded
CHECK = Check("warn", "answers without a thought, on which `data.thoughts` has no effect")
