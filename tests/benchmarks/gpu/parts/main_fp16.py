"""The main job in fp16."""

from __future__ import annotations

from job import main_job
from setting import Setting

WORTH = 60
SECONDS = 150


def run(setting: Setting) -> str:
    return main_job(setting, "fp16")
