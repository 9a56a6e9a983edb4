"""A hostile file, and a child process in which it is met while everything that it does is watched."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shlex
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.bounded_process import COMMAND
from peftcli.cli.entry import run as peft
from peftcli.models.builtin import builtin_base

GOOD = """\
model: builtin:tiny
data: {train: {path: builtin:support, rows: 12}, validation: 4, max_length: 160}
method: {type: lora, r: 2, target_modules: [q_proj, v_proj]}
training: {max_steps: 2, batch_size: 4, micro_batch_size: 2, learning_rate: 2e-3}
evaluation: {samples: 0}
checkpoint: {every: 1}
threads: 1
"""
ON_BASE = GOOD.replace("builtin:tiny", "./base")
ON_TEMPLATE = """\
model: {base: builtin:tiny, chat_template: t.jinja}
data: {train: ./rows.jsonl, truncation: left}
method: lora
training: {max_steps: 1, batch_size: 1}
"""
CHAT = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}\n'

CPU_SECONDS = 2.0
HANG_SECONDS = 40
EXTRA_BYTES = 300 << 20
CODES = {0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}

CANARY = "CANARY"
"""Name of the file that executed code would leave in the working directory."""
EVIL_MODULE = "evil_module"
PAYLOAD = b"cposix\nsystem\n(S'touch CANARY'\ntR."
"""A pickle that runs a shell command."""
PYTHON_PAYLOAD = f"open({CANARY!r}, 'w').close()\n"


class Scene:
    """The working directory of a case. `outside` is a pipe beside it: whoever opens it to read never comes back."""

    def __init__(self, folder: Path, trained: Path) -> None:
        self.folder = folder / "scene"
        self.folder.mkdir()
        self.outside = folder / "outside"
        os.mkfifo(self.outside)
        self.trained = trained
        self.write(f"{EVIL_MODULE}.py", PYTHON_PAYLOAD)

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path

    def adapter(self) -> Path:
        path = self.folder / "adapter"
        shutil.copytree(self.trained / "adapter", path)
        return path

    def run(self) -> Path:
        path = self.folder / "run"
        shutil.copytree(self.trained, path)
        return path

    def base(self) -> Path:
        path = self.folder / "base"
        shutil.copytree(builtin_base("tiny"), path)
        return path


@dataclass(frozen=True)
class Case:
    """`kind` names the benign case to compare with; `codes`: how it may be answered; `says`: parts of the answer."""

    name: str
    kind: str
    prepare: Callable[[Scene], object]
    codes: frozenset[int]
    says: tuple[str, ...] = ()
    command: str | None = None


@dataclass(frozen=True)
class Outcome:
    code: int
    text: str
    cpu_seconds: float
    seconds: float
    peak_bytes: int
    events: list[str]


@contextlib.contextmanager
def one_cpu() -> Iterator[None]:
    """Inside, `auto` means one thread: what has used more threads cannot go on using them in a fork."""
    before = os.sched_getaffinity(0)
    # each worker of the tests has a CPU of its own
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    os.sched_setaffinity(0, {sorted(before)[int(worker) % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def meet(command: str, folder: Path) -> Outcome:
    """Runs a command in a fork of this warm process, inside `folder`, under an audit hook."""
    record = folder.parent / "events.json"
    reader, writer = os.pipe()
    started = time.monotonic()
    # what this process has to collect no child looks through, page by page
    gc.freeze()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        code = 1
        try:
            code = _watched(shlex.split(command), folder, record)
        finally:
            os._exit(code)
    gc.unfreeze()
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8", errors="replace") as output:
        text = output.read()
    _, status, usage = os.wait4(child, 0)
    events = json.loads(record.read_text()) if record.exists() else ["the child told nothing"]
    return Outcome(
        os.waitstatus_to_exitcode(status), text, usage.ru_utime + usage.ru_stime, time.monotonic() - started,
        usage.ru_maxrss * 1024, events,
    )  # fmt: skip


def _watched(arguments: list[str], folder: Path, record: Path) -> int:
    os.chdir(folder)
    signal.alarm(HANG_SECONDS)
    sys.path.insert(0, str(folder))
    events: list[str] = []
    outside = str(folder.parent / "outside")

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if found := _suspicious(event, args, str(folder), outside):
            events.append(found)

    sys.addaudithook(watch)
    with one_cpu():
        code = peft(arguments)
    record.write_text(json.dumps(events))
    return code


_DRIVER = "libnvidia-ml.so.1"
"""Opened by a torch that is built for CUDA, to count devices."""
_PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn")


def _suspicious(event: str, args: tuple[Any, ...], folder: str, outside: str) -> str | None:
    # Python 3.13 tells of the same process twice
    if event in ("subprocess.Popen", "os.posix_spawn") and tuple(args[1])[: len(COMMAND)] == COMMAND:
        # chat templates run, and tokenizers are tried, in a process of our own, of which the environment is empty
        given = args[-1]
        return None if set(given or os.environ) <= {"PYTHONUTF8", "PYTHONHASHSEED"} else f"environment {given!r}"
    if event == "ctypes.dlopen" and args[0] == _DRIVER:
        return None
    if event in ("pickle.find_class", "socket.connect", "ctypes.dlopen") or event in _PROCESSES:
        # of the library's own start-up nothing is left to do in a warm process
        return f"{event} {args!r}"[:200]
    if event == "import" and str(args[0]).split(".")[0] in (EVIL_MODULE, "megatron"):
        return f"import {args[0]}"
    if event == "exec" and getattr(args[0], "co_filename", "").startswith(folder):
        return f"exec {args[0].co_filename}"
    if event == "open" and isinstance(args[0], (str, bytes)) and outside in os.path.realpath(os.fsdecode(args[0])):
        return f"open {args[0]!r}"
    return None


def header_bytes(header: Mapping[str, Any] | bytes, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data
