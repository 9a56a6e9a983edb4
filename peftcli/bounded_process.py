"""Starts a process for work on what a stranger made, which the kernel bounds: of this one's environment it has nothing.

What it runs is a function of ours, which sets its own bounds first (`system.limit_memory`, `system.end_after_computing`)
and imports no more than it needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

_START = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "getattr(importlib.import_module(sys.argv[2]), sys.argv[3])(*json.loads(sys.argv[4]))"
)
# Windows starts no program without it
_NEEDED = {"SYSTEMROOT"}
COMMAND = (sys.executable, "-I", "-c", _START)
"""How such a process is started, before its own arguments."""


def start(module: str, function: str, *arguments: Any) -> subprocess.Popen[bytes]:
    """A process that calls the function with arguments that JSON can say; its standard input and output are pipes."""
    # nothing of this process's environment: no credentials, no libraries that are loaded into every program
    return subprocess.Popen(
        [*COMMAND, json.dumps(sys.path), module, function, json.dumps(arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PYTHONUTF8": "1", "PYTHONHASHSEED": "0"} | {name: os.environ[name] for name in _NEEDED & set(os.environ)},
    )
