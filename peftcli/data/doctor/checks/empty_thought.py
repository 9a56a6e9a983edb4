"""Answers without a thought under templates that write an empty one in front of them, or expect one at inference."""

from __future__ import annotations

from peftcli.data.doctor.base import Check

# counted while conversations are rendered
CHECK = Check("warn", "an empty thought stands in front of answers in training or at inference, and not in the other")
