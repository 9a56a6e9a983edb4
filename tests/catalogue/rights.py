"""A command with the rights of a plain user: root, which no permission stops, gives its own up in a fork."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

NOBODY = 65534
_CAPABILITIES_VERSION = 0x20080522


def without_privileges(command: Callable[[], int]) -> int:
    """The exit code of a command that permissions stop, whoever runs the tests."""
    if os.geteuid() != 0:
        return command()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _become_reader()
            code = command()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _become_reader() -> None:
    """Becomes somebody who can read the modules of this Python, wherever they lie: nobody, where all may enter there,
    else the owner; root itself without its privileges last."""
    named = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    modules = [path for path in named if path is not None and os.path.exists(path)]
    owners = {os.stat(path).st_uid for path in modules}
    for user in [NOBODY, *sorted(owners - {0, NOBODY})]:
        os.seteuid(user)
        if _readable(modules):
            return
        os.seteuid(0)
    _drop_capabilities()
    if not _readable(modules):
        raise PermissionError("nobody but root with all its privileges can read the modules of this Python")


def _readable(paths: list[str]) -> bool:
    return all(os.access(path, os.R_OK, effective_ids=True) for path in paths)


def _drop_capabilities() -> None:
    """Leaves root a user like others, who owns its files."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")
