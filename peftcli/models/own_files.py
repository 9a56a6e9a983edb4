"""The one rule for files of a folder that somebody else made, base or adapter: what is read is a regular file in it.

A link is followed only to a regular file inside the folder, or as the Hub's cache has it: from
`snapshots/<commit>/name` into `blobs/` of the same repository. Nothing else is opened: a pipe never ends, a device has
no size, and a link that leaves the folder reads a file that belongs to somebody else.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_BLOBS, _SNAPSHOTS = "blobs", "snapshots"


def file_fault(file: Path, folder: Path) -> str | None:
    """Why `file`, which lies under `folder`, is not to be read, as a phrase after its name; None where it may be."""
    try:
        # resolved with links followed, so that one link in the middle of the path counts as well
        real, home, is_link = file.resolve(strict=True), folder.resolve(), file.is_symlink()
        is_regular = stat.S_ISREG(real.stat().st_mode)
    except (OSError, RuntimeError, ValueError):
        return "is a link that leads nowhere" if os.path.islink(file) else "is missing"
    if not (real.is_relative_to(home) or _is_cached_blob(real, home)):
        return "is a link that leads outside the folder" if is_link else "lies in a linked folder outside"
    return None if is_regular else "is not a regular file"


def is_own_file(file: Path, folder: Path) -> bool:
    """Whether `file` is there and may be read."""
    return file_fault(file, folder) is None


def is_there(file: Path) -> bool:
    """Whether anything has this name, a link that leads nowhere included."""
    return os.path.lexists(file)


def _is_cached_blob(real: Path, home: Path) -> bool:
    """`home` may be a folder deeper in a snapshot."""
    # at the same repository's `blobs` only: a link into another model's cache is a stranger's file
    inside = (home, *home.parents)
    return any(place.parent.name == _SNAPSHOTS and real.parent == place.parents[1] / _BLOBS for place in inside[:-1])
