"""Frames between two processes: a line of JSON, whose `bytes` entry says how much raw data follows it. No pickle."""

from __future__ import annotations

import json
from typing import IO, Any


def write_frame(stream: IO[bytes], head: dict[str, Any], body: bytes = b"") -> None:
    """Writes one frame and flushes it, since the other side waits for it. `head` must be plain JSON."""
    stream.write(json.dumps({**head, "bytes": len(body)}).encode() + b"\n")
    stream.write(body)
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The next frame, or None at the end of the stream."""
    line = stream.readline()
    # cut off: the other side died while it wrote
    if not line.endswith(b"\n"):
        return None
    head = json.loads(line)
    body = stream.read(head["bytes"])
    return (head, body) if len(body) == head["bytes"] else None
