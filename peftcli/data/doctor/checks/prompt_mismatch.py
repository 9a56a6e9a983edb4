"""Templates whose prompt at inference is not the text that came before the answer in training."""

from __future__ import annotations

from peftcli.data.doctor.base import Check

# counted while conversations are rendered
CHECK = Check("fail", "the chat template renders prompts differently in training and at inference")
