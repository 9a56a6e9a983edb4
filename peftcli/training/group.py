"""Several processes of one run: how they find each other, meet, add up, and end together.

The only place that knows torch's process group. Two kinds of talk:

    meet    a few facts from each to all, as JSON, at points that every process passes in the same order
    add     tensors, in an order that is agreed: the same parts give the same bits, whoever has them

A process that fails alone says so at its next meeting, so that nobody waits for it; one that dies closes its connections,
which ends the meeting of the others.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from peftcli.errors import PeftcliError, ProcessLost, error_facts, error_from
from peftcli.launching.places import LIFELINE, RENDEZVOUS, Place, place
from peftcli.streams import stdout_kept
from peftcli.training.signals import StopNow
from peftcli.training.world import ALONE, World

# the newer name; releases before torch 2.13 have the older one alone
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_FRAME = 1024
"""Bytes of a message that is sent in one piece."""
_HEAD = 8
_BUCKET = 1 << 24
"""Elements that are summed at once: bounds what the sum holds beside the gradients."""
_PATIENCE = timedelta(hours=24)
"""Reading data may take hours in one process while the others wait; a dead one is noticed at once, without it."""
_FINDING = timedelta(minutes=10)
"""All processes are there by then, or some were never started."""
_LAST_WORDS = timedelta(seconds=10)
_FAILED = "failed"


class Group(World):
    """Processes that are connected by torch."""

    def __init__(self, found: Place) -> None:
        self.place = found
        # what is said never waits behind tensors, nor meets those of a process that has failed among them
        with stdout_kept():
            self._talk = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._asked: Callable[[], int | None] | None = None
        self._broken = False

    def meet(self, what: str, said: Any = None) -> list[Any]:
        heard = self._exchange({"what": what, "said": said})
        for rank, each in enumerate(heard):
            if each["what"] == _FAILED:
                self._broken = True
                raise _failure(each["said"], rank, self.size)
        if any(each["what"] != what for each in heard):
            self._broken = True
            raise ProcessLost(
                f"the processes of this run are not at the same point: {', '.join(each['what'] for each in heard)}",
                fix="the same version of peftcli, recipe and data on every machine; then `peft resume` the run",
            )
        return [each["said"] for each in heard]

    def fail(self, error: BaseException) -> None:
        """Tells the others, at their next meeting, that this process ends; once, and not where the talk has ended."""
        if self._broken:
            return
        self._broken = True
        said = error_facts(error) if isinstance(error, PeftcliError) else _bug(error)
        # the others may be gone as well: then there is nobody to tell
        with contextlib.suppress(RuntimeError):
            self._exchange({"what": _FAILED, "said": said}, patience=_LAST_WORDS)

    def _exchange(self, message: dict[str, Any], patience: timedelta = _PATIENCE) -> list[Any]:
        blob = json.dumps(message).encode()
        with self._connection():
            head = len(blob).to_bytes(_HEAD, "little")
            frames = self._gathered(head + blob[: _FRAME - _HEAD], _FRAME, patience)
            lengths = [int.from_bytes(frame[:_HEAD], "little") for frame in frames]
            if max(lengths) <= _FRAME - _HEAD:
                return [
                    json.loads(frame[_HEAD : _HEAD + length]) for frame, length in zip(frames, lengths, strict=True)
                ]
            whole = self._gathered(blob, max(lengths), patience)
        return [json.loads(each[:length]) for each, length in zip(whole, lengths, strict=True)]

    def _gathered(self, blob: bytes, length: int, patience: timedelta) -> list[bytes]:
        mine = torch.zeros(length, dtype=torch.uint8)
        mine[: len(blob)] = torch.frombuffer(bytearray(blob), dtype=torch.uint8)
        found = torch.empty(self.size * length, dtype=torch.uint8)
        _all_gather(found, mine, group=self._talk, async_op=True).wait(patience)
        return [bytes(part.numpy().tobytes()) for part in found.split(length)]

    @contextlib.contextmanager
    def _connection(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self._broken = True
            raise ProcessLost(
                f"another process of this run has ended (this one is {self.rank + 1} of {self.size})",
                fix="see what it said last; `peft resume` goes on from the newest checkpoint",
            ) from error

    def add(self, shares: Sequence[Tensor], owners: Sequence[int], *, length: int, device: torch.device) -> Tensor:
        found = torch.empty(length, device=device)
        nothing = [torch.zeros(length, device=device)]
        with self._connection():
            for start in range(0, length, _BUCKET):
                place = slice(start, min(start + _BUCKET, length))
                pieces = [share[place] for share in shares or nothing]
                found[place] = _summed(pieces, owners, self.rank, self.size)
        return found

    @contextlib.contextmanager
    def listening(self, asked: Callable[[], int | None]) -> Iterator[None]:
        self._asked = asked
        try:
            yield
        finally:
            self._asked = None

    def pause(self) -> None:
        numbers = self.meet("pause", None if self._asked is None else self._asked())
        heard = next((number for number in numbers if number is not None), None)
        if heard is not None:
            raise StopNow(heard)


def _summed(shares: Sequence[Tensor], owners: Sequence[int], rank: int, size: int) -> Tensor:
    """The sum of the shares of all processes, (elements,), in the order of `owners`: each process adds one part of it up.

    A ring moves as much and chooses its own order. All know how many shares each has, and how long they are.
    """
    counts = [owners.count(each) for each in range(size)]
    part = -(-shares[0].numel() // size)
    padded = torch.zeros(len(shares), part * size, dtype=shares[0].dtype, device=shares[0].device)
    for row, share in zip(padded, shares, strict=True):
        row[: share.numel()] = share
    mine = padded[: counts[rank]].view(counts[rank], size, part).transpose(0, 1).reshape(-1)
    heard = torch.empty(sum(counts) * part, dtype=padded.dtype, device=padded.device)
    dist.all_to_all_single(heard, mine, [count * part for count in counts], [counts[rank] * part] * size)
    waiting = [iter(each.view(-1, part)) for each in heard.split([count * part for count in counts])]
    first, *others = (next(waiting[each]) for each in owners)
    total = first.clone()
    for each in others:
        total += each
    found = torch.empty(part * size, dtype=padded.dtype, device=padded.device)
    _all_gather(found, total)
    return found[: shares[0].numel()]


def _bug(error: BaseException) -> dict[str, Any]:
    return error_facts(ProcessLost(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))


def _failure(facts: dict[str, Any], rank: int, size: int) -> PeftcliError:
    """The error of another process, as this one raises it."""
    error = error_from(facts)
    error.add_note(f"in process {rank + 1} of {size}")
    return error


_opened: Group | None = None


def current_world() -> World:
    """The processes that a launcher has started this one among, connected at the first call; else a run of one.

    Raises `DeviceError` where the launcher's variables make no sense, `ProcessLost` where the others do not come.
    """
    global _opened
    found = place()
    if found.size == 1:
        return ALONE
    if _opened is None:
        _opened = _connected(found)
    return _opened


def _connected(found: Place) -> Group:
    # torch and Accelerate read these, whatever the launcher calls them
    names = {"RANK": found.rank, "WORLD_SIZE": found.size, "LOCAL_RANK": found.local_rank}
    os.environ.update({name: str(value) for name, value in {**names, "LOCAL_WORLD_SIZE": found.local_size}.items()})
    _hold_on_to_launcher()
    file = os.environ.get(RENDEZVOUS)
    backend = "gloo"
    if torch.cuda.is_available():
        # a device of its own before anything starts CUDA; what the processes tell each other stays on the CPU
        torch.cuda.set_device(found.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    try:
        with stdout_kept():
            dist.init_process_group(
                backend,
                init_method="env://" if file is None else f"file://{file}",
                rank=found.rank,
                world_size=found.size,
                timeout=_FINDING,
            )
    except (RuntimeError, ValueError, OSError) as error:
        text = " ".join(str(error).split())[:200]
        raise ProcessLost(
            f"the {found.size} processes did not find each other: {text}", fix="see the launcher's output"
        ) from error
    atexit.register(_disconnect)
    return Group(found)


def _hold_on_to_launcher() -> None:
    """Where our own launcher dies this process is told to stop, as by `kill`: a checkpoint first, then the end."""
    text = os.environ.pop(LIFELINE, None)
    if text is None:
        return

    def watch() -> None:
        os.read(int(text), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _disconnect() -> None:
    with contextlib.suppress(Exception):
        dist.destroy_process_group()


@contextlib.contextmanager
def telling_failures(world: World) -> Iterator[None]:
    """What ends this process inside the block is told to the others."""
    try:
        yield
    except BaseException as error:
        if isinstance(world, Group):
            world.fail(error)
        raise
