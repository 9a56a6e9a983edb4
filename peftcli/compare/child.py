"""What a member's process runs: a command of ours that is stopped, with its checkpoint written, when the comparison dies.

    python -m peftcli.compare.child PARENT train ...

A comparison that is killed cannot pass the signal on, and a member that went on by itself would hold its folder against
the command that goes on.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Never returns where the command ends by itself."""
    parent = int(sys.argv.pop(1))
    end_with_parent(parent)
    runpy.run_module("peftcli", run_name="__main__", alter_sys=True)


def end_with_parent(parent: int) -> None:
    """Asks Linux for a SIGTERM once the process that started this one is gone; elsewhere nothing is done."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        # it was gone before it was asked for
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
