"""Answers that begin right after the last word of their prompt, with nothing between that the model could tell."""

from __future__ import annotations

from peftcli.data.doctor.base import Check

# counted while rows are encoded: a chat template puts borders of its own
CHECK = Check(
    "warn", "answers that nothing separates from their prompt: end prompts, or begin answers, with a line or space"
)
