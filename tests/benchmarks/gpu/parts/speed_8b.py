"""An 8B-shaped Llama: speed, memory, time to the first step, what the host holds while it is loaded."""

from __future__ import annotations

from llama import LLAMA_8B
from setting import Setting
from speed import measure

WORTH = 50
SECONDS = 170
ALONE = True


def run(setting: Setting) -> str:
    return measure(setting, LLAMA_8B, steps=6, bounded_on_host=True)
