"""Encodes chunks while the next ones are read: in one thread, or for many conversations in several processes.

Text needs no processes, since the Rust tokenizer uses every core by itself; conversations spend most of their time in
their template. The outcome is the same, chunk by chunk, whatever does the work.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from queue import SimpleQueue
from typing import cast

from peftcli import system
from peftcli.data.encode.base import EncodedRows, Place
from peftcli.data.encode.encoder import RowEncoder
from peftcli.data.encode.worker import chunk_frame, result_of
from peftcli.data.rows import ChatRow, Row
from peftcli.data.wire import read_frame, write_frame
from peftcli.errors import DeviceError

# below this much data the processes would not be ready before the work is done
LARGE_BYTES = 16 << 20
"""Sources of conversations below this size are encoded in this process."""
MAX_PROCESSES = 16

Submit = Callable[[Sequence[Row], Place], "Future[EncodedRows]"]


@contextmanager
def encoding(encoder: RowEncoder, *, large: bool, conversations: bool) -> Iterator[tuple[Submit, int]]:
    """A function that takes chunks, and how many of them it works on at once."""
    # processes take seconds to start, which small sources do not need
    count = min(system.usable_cpus(), MAX_PROCESSES) if large and conversations and encoder.has_template else 1
    if count < 2:
        with _threads(1) as pool:
            yield lambda rows, place: pool.submit(encoder.encode, rows, place), 1
        return
    with _processes(encoder, count) as idle, _threads(count) as pool:

        def submit(rows: Sequence[Row], place: Place) -> Future[EncodedRows]:
            # plain rows are the Rust tokenizer's, which needs no process
            if not all(type(row) is ChatRow for row in rows):
                return pool.submit(encoder.encode, rows, place)
            return pool.submit(_ask, idle, cast(Sequence[ChatRow], rows), [place(row) for row in range(len(rows))])

        yield submit, count


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    # Ctrl-C too: rows that still wait would be encoded for nobody, and what is being encoded may never end
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


_Idle = SimpleQueue["subprocess.Popen[bytes]"]


@contextmanager
def _processes(encoder: RowEncoder, count: int) -> Iterator[_Idle]:
    # one thread for each worker: the workers are as many as the cores
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "peftcli.data.encode.worker"]
    workers = [
        # in a session of its own: Ctrl-C is for the command, which ends its workers
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        for _ in range(count)
    ]
    idle: _Idle = SimpleQueue()
    try:
        for worker in workers:
            assert worker.stdin is not None
            write_frame(worker.stdin, {"tokenizer": asdict(encoder.codec.facts), "settings": asdict(encoder.settings)})
            idle.put(worker)
        yield idle
    except BrokenPipeError as error:
        raise _died() from error
    finally:
        for worker in workers:
            # killed, not asked: nothing that they hold is needed, and one may be in a template
            worker.kill()
        for worker in workers:
            # waited for, so that none is left as a zombie, and their pipes are closed
            worker.communicate()


def _ask(idle: _Idle, rows: Sequence[ChatRow], places: Sequence[str]) -> EncodedRows:
    worker = idle.get()
    try:
        assert worker.stdin is not None
        assert worker.stdout is not None
        write_frame(worker.stdin, chunk_frame(rows, places))
        answer = read_frame(worker.stdout)
    except BrokenPipeError as error:
        raise _died() from error
    finally:
        # back in any case: a worker that died is found out by whoever asks it next
        idle.put(worker)
    if answer is None:
        raise _died()
    return result_of(*answer)


def _died() -> DeviceError:
    return DeviceError("a process that encodes rows has ended unexpectedly", fix="is there enough memory? run again")
