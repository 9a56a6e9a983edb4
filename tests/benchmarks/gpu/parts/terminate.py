"""A run that is asked to end, and its resumption."""

from __future__ import annotations

import signal

from ending import end_by
from setting import Setting

WORTH = 70
SECONDS = 150


def run(setting: Setting) -> str:
    return end_by(setting, signal.SIGTERM, 128 + signal.SIGTERM)
