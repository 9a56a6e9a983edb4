"""A run that is killed without warning, and its resumption."""

from __future__ import annotations

import signal

from ending import end_by
from setting import Setting

WORTH = 30
SECONDS = 150


def run(setting: Setting) -> str:
    return end_by(setting, signal.SIGKILL, -signal.SIGKILL)
