"""A tokenizer is tried out in a process of its own before it is used in this one.

`tokenizer.json` is a program of a stranger's: regular expressions that never end, steps that make a text longer and
longer, thousands of tokens around each text. All of it runs in a library that no signal stops and that gives up by a
panic. So it meets texts of every kind first where the kernel bounds time and memory.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
from pathlib import Path

from peftcli import bounded_process, system
from peftcli.errors import ModelError

SECONDS, SECONDS_PER_MIB = 1.5, 0.4
"""Of computing: most of it is reading the file, which may have tens of MiB."""
MEMORY_BYTES, MEMORY_PER_BYTE = 512 << 20, 40
_PATIENCE_SECONDS = 120
"""By the clock, for a machine that has other work."""
_MOST_TOKENS, _MOST_TOKENS_PER_CHARACTER = 4096, 32
_MOST_CHARACTERS_PER_TOKEN = 1024
_UNITS = (
    ("a", 400), ("x", 2000), (" ", 400), ("ab", 300), ("1", 400), ("\n", 400), ("A1 b2", 200), ("é", 300), ("!?", 200),
    ("don't ", 50),
)  # fmt: skip
_PROBES = (
    "",
    'The quick brown fox said: "naïve" façade, 漢字かな, 한국어, हिन्दी, العربية 👩\u200d👩\u200d👧\u200d👦!',
    "\tif (x == 1) { y = 2.50e-3; }\r\n",
    *(unit * count + end for unit, count in _UNITS for end in ("", "!", "\n", "Z")),
)


def require_bounded_tokenizer(file: Path, name: str) -> None:
    """Raises `ModelError` for a `tokenizer.json` that takes more time or memory than texts of its size need, makes far
    too many tokens of them, or gives up."""
    facts = file.stat()
    fault = _fault(str(file.resolve()), facts.st_size, facts.st_mtime_ns)
    if fault is not None:
        raise ModelError(
            f"the tokenizer of {name} is refused: {fault}",
            where=str(file.resolve()),
            fix="get it again from its own page; where it is not yours, do not trust this model",
        )


@functools.lru_cache(maxsize=64)
def _fault(file: str, size: int, changed: int) -> str | None:
    """Why it is not to be used. `changed` is part of what is remembered."""
    seconds = SECONDS + SECONDS_PER_MIB * (size >> 20)
    child = bounded_process.start(__name__, "try_out", file, seconds, MEMORY_BYTES + MEMORY_PER_BYTE * size)
    try:
        told, _ = child.communicate(timeout=_PATIENCE_SECONDS)
    # the kernel ends what computes too long; this ends what waits
    except subprocess.TimeoutExpired:
        child.kill()
        told, _ = child.communicate()
    with contextlib.suppress(ValueError):
        found: str | None = json.loads(told)["fault"]
        return found
    return "on ordinary texts it needs more time or memory than any tokenizer does"


def try_out(file: str, seconds: float, memory_bytes: int) -> None:
    """In the process of its own: prints what is wrong as JSON, null where nothing is."""
    system.limit_memory(memory_bytes)
    system.end_after_computing(seconds)
    print(json.dumps({"fault": _trial(file)}), flush=True)


def _trial(file: str) -> str | None:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(file)
    except Exception:
        # what is no tokenizer at all is told by whoever loads it
        return None
    for text in _PROBES:
        try:
            ids = tokenizer.encode(text).ids
            back = tokenizer.decode(ids, skip_special_tokens=False)
        except BaseException as error:  # a panic of the library is no `Exception`
            return f"it fails on an ordinary text: {' '.join(str(error).split())[:120]}"
        if len(ids) > _MOST_TOKENS + _MOST_TOKENS_PER_CHARACTER * len(text):
            return f"it makes {len(ids):,} tokens of {len(text):,} characters"
        if len(back) > _MOST_TOKENS + _MOST_CHARACTERS_PER_TOKEN * len(ids):
            return f"it makes {len(back):,} characters of {len(ids):,} tokens"
    return None
