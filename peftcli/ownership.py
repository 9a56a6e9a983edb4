"""Files that a command may write over: none but those that a command of ours wrote before, and empty ones.

What we write again (reports, results for CI) carries a mark by which it is known; locks are known by their form.
"""

from __future__ import annotations

import os
from pathlib import Path

from peftcli import files
from peftcli.errors import StorageError

MARKDOWN_MARK = "<!-- made by peftcli -->"
"""In a Markdown file of ours, so that nobody else's is written over."""
HTML_MARK = '<meta name="generator" content="peftcli">'
"""In the head of an HTML page of ours, so that nobody else's is written over."""
JUNIT_MARK = 'package="peftcli"'
"""In a JUnit file of ours, so that nobody else's is written over."""
_LIMIT_BYTES = 64 << 20


def require_writable(path: Path, mark: str) -> None:
    """Raises `StorageError` where something is in the way of a file that does not carry our mark."""
    text = text_in_the_way(path)
    if text and mark not in text:
        raise in_the_way(path)


def text_in_the_way(path: Path) -> str:
    """The text of the file that has a path already; empty where there is none, or nothing in it.

    Raises `StorageError` for what is no regular file.
    """
    # `lexists`: a link that leads nowhere is in the way too
    if not os.path.lexists(path):
        return ""
    if path.is_symlink() or not path.is_file():
        raise in_the_way(path)
    return files.read_bounded(path, limit_bytes=_LIMIT_BYTES).decode("utf-8", errors="replace")


def in_the_way(path: Path) -> StorageError:
    """The error for a file of somebody's own where one of ours should go."""
    return StorageError(
        "a file that peft did not write is in the way, and is left alone",
        where=str(path),
        fix="move it elsewhere, or choose another name",
    )


def write_new(path: Path, text: str) -> None:
    """Writes a new file; `StorageError` where the name is taken, by a link that leads nowhere too."""
    if os.path.lexists(path):
        raise StorageError("the file exists and is left alone", where=str(path), fix="choose another name by --output")
    files.write_text(path, text)
