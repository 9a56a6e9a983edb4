"""Standard streams that nobody reads any more: each command ends with its own code, and the same bytes on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file, save
from whole_run import LORA, Child, adapter_bytes, at_step, in_a_fork, losses, one_cpu, send, write_recipe

from peftcli.cli.entry import main
from peftcli.streams import LastingStream
from peftcli.training.history import NUMBERS

pytestmark = pytest.mark.usefixtures("warm")

Spoil = Callable[[int], None]


def closed_pipe(number: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, number)


def closed_descriptor(number: int) -> None:
    os.close(number)


def full_disk(number: int) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), number)


def ascii_only(number: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def gone_terminal(number: int) -> None:
    master, slave = pty.openpty()
    os.dup2(slave, number)
    os.close(slave)
    os.close(master)


STATES = [closed_pipe, closed_descriptor, full_disk, ascii_only, gone_terminal]
STREAMS = {"stdout": 1, "stderr": 2}
COMMANDS = ["train", "resume", "merge", "evaluate", "reproduce"]


def in_a_spoiled_fork(arguments: Sequence[str], spoil: Spoil, number: int) -> tuple[int, str]:
    """Exit code of the console script with one stream spoiled, and what came out of the other one."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.close(reader)
            os.dup2(writer, 3 - number)
            os.close(writer)
            spoil(number)
            streams = {name: _opened(place, ascii_only is spoil) for name, place in STREAMS.items()}
            sys.stdout, sys.stderr = streams["stdout"], streams["stderr"]
            with one_cpu():
                main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
            # as Python does when it ends: an error here would be exit code 120
            for name in STREAMS:
                getattr(sys, name).flush()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8", errors="replace") as other:
        text = other.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def _opened(number: int, as_ascii: bool) -> object:
    """A standard stream as Python opens it; None where its descriptor is closed."""
    try:
        os.fstat(number)
    except OSError:
        return None
    # a line at a time, as on a terminal: a buffer would hide the failure until the end
    return open(number, "w", encoding="ascii" if as_ascii else "utf-8", buffering=1, closefd=False)


@dataclass
class Ready:
    """A folder with what the commands need."""

    place: Path

    def arguments(self, command: str, output: Path) -> list[str]:
        recipe, run = str(self.place / "prüfung.yaml"), str(self.place / "run")
        return {
            "train": ["train", recipe, "--output", str(output)],
            "resume": ["resume", str(output)],
            "merge": ["merge", run, "--output", str(output)],
            "evaluate": ["evaluate", run],
            # other data than the lock's: it does not reproduce, and must say so by its code
            "reproduce": ["reproduce", str(self.place / "changed.yaml"), "--set", "training.learning_rate=1e-3"],
        }[command]


def digests(folder: Path) -> dict[str, str]:
    """Of what a command leaves behind, without clocks: weights, losses and names."""
    kept = {".safetensors"}
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    found = {name: "" if Path(name).suffix not in kept else _digest(folder / name) for name in names}
    if (folder / "metrics.jsonl").is_file():
        found["losses"] = repr(losses(folder))
    return found


def _digest(path: Path) -> str:
    tensors = load_file(path)
    if (numbers := tensors.get("history.numbers")) is not None:
        clock = NUMBERS.index("seconds")
        tensors["history.numbers"] = numbers[
            :, [column for column in range(len(NUMBERS)) if column != clock]
        ].contiguous()
    return hashlib.sha256(save(tensors)).hexdigest()


@pytest.fixture(scope="module")
def ready(warm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    place = tmp_path_factory.mktemp("streams")
    recipe = write_recipe(place, LORA).rename(place / "prüfung.yaml")
    assert in_a_fork(["train", str(recipe), "--output", str(place / "run"), "--quiet"])[0] == 0
    (place / "changed.yaml").write_text(recipe.read_text())
    assert in_a_fork(["lock", str(place / "run")])[0] == 0
    (place / "prüfung.lock").rename(place / "changed.lock")
    with contextlib.chdir(place):
        yield Ready(place)


def begun(ready: Ready, folder: Path) -> None:
    """A run that has been begun and has no adapter yet."""
    first = ready.place / "begun"
    if not first.exists():
        arguments = ["train", str(ready.place / "prüfung.yaml"), "--output", str(first)]
        code, text = Child(arguments, arm=at_step(1, send(signal.SIGTERM))).end()
        assert code == 143, text
    shutil.copytree(first, folder)


def require_undisturbed(ready: Ready, command: str, spoil: Spoil, stream: str, tmp_path: Path) -> None:
    whole, spoiled = tmp_path / "whole", tmp_path / "spoiled"
    for output in (whole, spoiled):
        if command == "resume":
            begun(ready, output)
    expected, _ = in_a_fork(ready.arguments(command, whole))
    found, other = in_a_spoiled_fork(ready.arguments(command, spoiled), spoil, STREAMS[stream])
    assert found == expected == (10 if command == "reproduce" else 0), other
    assert "Traceback" not in other
    assert "a bug in peftcli" not in other
    if command in ("train", "resume", "merge"):
        assert digests(spoiled) == digests(whole)
    if command in ("train", "resume"):
        assert json.loads((spoiled / "run.json").read_text(encoding="utf-8"))["status"] == "completed"
        assert adapter_bytes(spoiled) == adapter_bytes(ready.place / "run")


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("spoil", STATES)
def test_a_run_ends_as_ever(ready: Ready, spoil: Spoil, stream: str, tmp_path: Path) -> None:
    require_undisturbed(ready, "train", spoil, stream, tmp_path)


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_a_reader_that_goes_away_changes_no_exit_code(ready: Ready, command: str, tmp_path: Path) -> None:
    require_undisturbed(ready, command, closed_pipe, "stdout" if command == "evaluate" else "stderr", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("spoil", STATES)
def test_every_command_ends_as_ever(ready: Ready, command: str, spoil: Spoil, stream: str, tmp_path: Path) -> None:
    require_undisturbed(ready, command, spoil, stream, tmp_path)


@pytest.mark.parametrize("spoil", STATES)
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train", "not-there.yaml"], 2),
        (["validate", "prüfung.yaml", "--set", "method.rank=3"], 2),
        (["generate", "prüfung-nowhere", "--prompt", "x"], 4),
        (["resume", "."], 7),
        (["nonsense"], 2),
        (["schema"], 0),
        (["--help"], 0),
    ],
)
def test_an_error_that_nobody_reads_keeps_its_code(ready: Ready, arguments: list[str], code: int, spoil: Spoil) -> None:
    for number in STREAMS.values():
        assert in_a_spoiled_fork(arguments, spoil, number)[0] == code


def test_a_result_that_a_full_disk_swallows_is_told(ready: Ready) -> None:
    code, text = in_a_spoiled_fork(["schema"], full_disk, 1)
    assert (code, "could not be written to stdout" in text) == (0, True)


def test_characters_that_an_encoding_lacks_are_spelled(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding="ascii") as stream:
        LastingStream(stream).write("a ü ✓\n")
    assert path.read_text() == "a \\xfc \\u2713\n"
