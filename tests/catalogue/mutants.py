"""Mutants: small files of four kinds, with damage that ranges from a flipped bit to values that nobody would write."""

from __future__ import annotations

import copy
import json
import random
import struct
from pathlib import Path
from typing import Any

from entry import CHAT, GOOD, ROWS

NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", "x", "8", "nan", "../..", "/dev/zero", "\x00", "\x1b[31m", "\u202e", "é" * 50, "a" * 5000, ".*" * 20 + "X",
    "(a+)+$", "__class__", [], [[]], [None], ["q_proj"], [1, 2], {}, {"": ""}, {"a": {"b": {}}}, [[0] * 20] * 20,
]  # fmt: skip
PIECES = [
    b"[", b"]", b"{", b"}", b":", b",", b'"', b"\\", b"\\u", b"\\ud800", b"null", b"NaN", b"Infinity", b"-", b"1e999", b"\n",
    b"\r\n", b"\t", b"\x00",
    b"\xff", b"\xef\xbb\xbf", "😀".encode(), b"[" * 50, b"9" * 50, b"'", b"# ", b"&a ", b"*a", b"- ",
]  # fmt: skip


def bytes_of(data: bytes, draw: random.Random) -> bytes:
    """One to five changes to bytes: cut, put in, flipped, repeated, replaced."""
    found = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 5])):
        place = draw.randrange(len(found) + 1)
        match draw.randrange(6):
            case 0:
                found[place : place + draw.randint(1, 12)] = b""
            case 1:
                found[place:place] = draw.choice(PIECES)
            case 2 if place < len(found):
                found[place] ^= 1 << draw.randrange(8)
            case 3:
                other = draw.randrange(len(found) + 1)
                found[place:place] = found[min(place, other) : max(place, other)][:300]
            case 4 if draw.random() < 0.2:
                del found[place:]
            case _:
                found[place : place + 1] = draw.randbytes(draw.randint(1, 3))
    return bytes(found)


def values_of(document: Any, draw: random.Random) -> Any:
    """One to three values anywhere inside replaced, taken out, renamed or moved."""
    document = json.loads(json.dumps(document))
    for _ in range(draw.choice([1, 1, 2, 3])):
        parent = draw.choice(_containers(document))
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        if not keys:
            continue
        key = draw.choice(keys)
        match draw.randrange(5):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[str(key) + draw.choice(["s", "_", "\x00", " "])] = parent[key]
            case 2:
                parent[key] = [parent[key]]
            case _:
                parent[key] = copy.deepcopy(draw.choice(NASTY))
    return document


def _containers(document: Any) -> list[Any]:
    inside = document.values() if isinstance(document, dict) else document
    found = [document]
    for value in inside:
        if isinstance(value, dict | list):
            found += _containers(value)
    return found


def recipe(draw: random.Random) -> bytes:
    return bytes_of(GOOD.encode(), draw)


def config(original: Path, draw: random.Random) -> bytes:
    """Of an `adapter_config.json`."""
    data = original.read_bytes()
    if draw.random() < 0.3:
        return bytes_of(data, draw)
    return json.dumps(values_of(json.loads(data), draw)).encode("utf-8", "surrogatepass")


def tensors(original: Path, draw: random.Random) -> bytes:
    """Of a safetensors file: its length, its header or its end."""
    data = original.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + size], data[8 + size :]
    match draw.randrange(10):
        case 0:
            wrong = draw.choice([0, 1, size - 1, size + 1, len(data), 2**32, 2**62, 2**64 - 1])
            return struct.pack("<Q", wrong) + header + body
        case 1:
            return data[: draw.randrange(len(data))]
        case 2:
            return data + draw.randbytes(draw.randint(1, 9))
        case 3 | 4 | 5:
            header = bytes_of(header, draw)
        case _:
            header = json.dumps(values_of(json.loads(header), draw)).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + body


def rows(draw: random.Random) -> bytes:
    """Of a JSONL file of prompts or of conversations."""
    text = ROWS * 3 if draw.random() < 0.5 else CHAT * 3
    if draw.random() < 0.5:
        return bytes_of(text.encode(), draw)
    lines = [
        values_of(json.loads(line), draw) if draw.random() < 0.5 else json.loads(line) for line in text.splitlines()
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode("utf-8", "surrogatepass")
