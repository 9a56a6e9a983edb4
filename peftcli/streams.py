"""Standard streams that never stop a run: what nobody can read any more is left unsaid.

A reader goes away (`| head`), a terminal is closed, a log's disk is full, a descriptor was never open (`>&-`), an
encoding lacks a character: none of it is a fault of the run, whose result is on disk and whose exit code is its own.

They are also the one place where text becomes safe for a terminal: whatever is printed, by us or by a library, may hold
names, rows and values of strangers. Only what we draw ourselves, colours and a bar, goes by `painting`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from peftcli.visible import reveal

Say = Callable[[str], None]
"""Takes a line of progress."""

_NOBODY_LISTENS = frozenset({errno.EPIPE, errno.EIO, errno.EBADF})
"""Errors of a stream whose other end is gone; any other is worth a word."""


class LastingStream:
    """A text stream that takes everything: what cannot be written is dropped, from the first failure on for good.

    What drives a terminal or hides in a line is shown by its code point.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: str | None = None
        """Why it was given up, where somebody may want to know."""
        self._lost = False

    def write(self, text: str) -> int:
        """Writes text with everything hidden in it made visible; never fails."""
        self.paint(reveal(text))
        return len(text)

    def paint(self, text: str) -> None:
        """Writes a text whose foreign parts have been made visible, with our own colours or movements of the cursor."""
        if not self._lost:
            try:
                self._write(text)
            except (OSError, ValueError) as error:
                # `ValueError`: the stream was closed, by a library or while Python ends
                self._lose(error)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            # only the line at hand loses its characters: the encoding of the stream stays as its owner set it
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def writelines(self, lines: Any) -> None:
        """Writes each of the lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Passes on what the stream has buffered; never fails."""
        if not self._lost:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def isatty(self) -> bool:
        """Whether a terminal reads it, still."""
        return not self._lost and self._stream.isatty()

    def _lose(self, error: OSError | ValueError) -> None:
        """Gives the stream up. What is still in its buffer, and what libraries write past us, goes to no device."""
        self._lost = True
        if isinstance(error, OSError) and error.errno not in _NOBODY_LISTENS:
            self.failure = error.strerror or str(error)
        with contextlib.suppress(OSError, ValueError):
            # the descriptor itself: C libraries write to it past Python, and Python flushes its buffer at exit
            descriptor = self._stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def stdout_kept() -> Iterator[None]:
    """For results alone: what a C library prints on stdout in the block goes to stderr (gloo greets its peers there)."""
    try:
        kept = os.dup(1)
    except OSError:
        yield
        return
    try:
        # where stderr is closed there is nowhere to send it
        with contextlib.suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class _Painting:
    """Everything of a lasting stream, except that what is written is drawn as it is."""

    def __init__(self, stream: LastingStream) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.paint(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def painting(stream: TextIO | None) -> TextIO:
    """The stream for text of ours that holds colours or moves the cursor; foreign parts of it are made visible before."""
    return cast(TextIO, _Painting(cast(LastingStream, lasting(stream))))


def wants_colour(stream: TextIO) -> bool:
    """Whether what is printed there may be coloured: on a terminal that can, where nobody set NO_COLOR (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")


def lasting(stream: TextIO | None) -> TextIO:
    """The stream so that writing to it never fails; a missing one takes everything too."""
    if isinstance(stream, LastingStream):
        return cast(TextIO, stream)
    # a device that takes everything lives as long as the process
    found = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return cast(TextIO, LastingStream(found))


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Inside, stdout and stderr take everything. Where a full disk swallowed a result, stderr says so in the end."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err = lasting(before[0]), lasting(before[1])
    try:
        yield
    finally:
        # flushed while it can still be reported: at exit Python would print a traceback and end with code 120
        out.flush()
        failure = cast(LastingStream, out).failure
        if failure is not None:
            err.write(f"warning: the output could not be written to stdout: {failure}\n")
        err.flush()
        sys.stdout, sys.stderr = before


def open_missing_descriptors() -> None:
    """Opens no device on each of the descriptors 0 to 2 that is closed, before a file of ours takes its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # `open` takes the lowest free number, and those below have been seen to already
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115


def tell(line: str) -> None:
    """A line on stderr that nothing depends on: progress, a warning."""
    stream = lasting(sys.stderr)
    stream.write(line + "\n")
    stream.flush()
