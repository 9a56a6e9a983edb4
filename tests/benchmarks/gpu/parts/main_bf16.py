"""The main job in bf16."""

from __future__ import annotations

from job import main_job
from setting import Setting

WORTH = 20
SECONDS = 150


def run(setting: Setting) -> str:
    return main_job(setting, "bf16")
