"""A 1B-shaped Llama: speed, memory, time to the first step."""

from __future__ import annotations

from llama import LLAMA_1B
from setting import Setting
from speed import measure

WORTH = 52
SECONDS = 100
ALONE = True


def run(setting: Setting) -> str:
    return measure(setting, LLAMA_1B, steps=10, bounded_on_host=False)
