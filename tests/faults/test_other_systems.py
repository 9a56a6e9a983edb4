"""File systems without locks, and systems without what only Linux has: the same run, with a warning at most."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from whole_run import Child, at_step, in_a_fork, require_whole, send, write_recipe

from peftcli import files, system
from peftcli.errors import StorageError
from peftcli.runs.folder_lock import LOCK_NAMES, owned_folder

NO_LOCKS = [errno.ENOLCK, errno.EOPNOTSUPP]


def without_locks(number: int) -> None:
    """Every lock fails as on a network disk."""
    import fcntl

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    fcntl.flock = flock


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "try_lock", lambda descriptor: system.Lock.UNKNOWN)


def owner(folder: Path) -> Path:
    return folder / LOCK_NAMES[1]


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_run_on_a_disk_without_locks(tmp_path: Path, number: int) -> None:
    recipe, folder, whole = write_recipe(tmp_path), tmp_path / "run", tmp_path / "whole"
    assert in_a_fork(["train", str(recipe), "--output", str(whole), "--quiet"])[0] == 0

    def arm() -> None:
        without_locks(number)
        at_step(2, send(9))()

    code, _ = Child(["train", str(recipe), "--output", str(folder), "--quiet"], arm=arm).end()
    assert code == -9
    assert owner(folder).exists()
    code, text = Child(["resume", str(folder), "--quiet"], arm=lambda: without_locks(number)).end()
    assert code == 0, text
    assert text.startswith("warning: the file system has no locks")
    require_whole(folder, whole, number)


def test_a_folder_without_locks_has_one_owner(tmp_path: Path, no_locks: None) -> None:
    with owned_folder(tmp_path):
        with (
            pytest.raises(StorageError, match=f"process {os.getpid()} of this machine owns"),
            owned_folder(tmp_path),
        ):
            pass
        assert owner(tmp_path).exists()
    assert not owner(tmp_path).exists()


@pytest.mark.parametrize(
    ("text", "free"),
    [
        (json.dumps({"machine": "HERE", "process": 2**22 + 1}), True),
        (json.dumps({"machine": "elsewhere", "process": 2**22 + 1}), False),
        ("", True),
        ('{"machine"', True),
    ],
)
def test_an_owner_that_has_ended_is_passed_over(tmp_path: Path, no_locks: None, text: str, free: bool) -> None:
    import platform

    owner(tmp_path).write_text(text.replace("HERE", platform.node()))
    if free:
        with owned_folder(tmp_path):
            pass
    else:
        with pytest.raises(StorageError, match="another machine"), owned_folder(tmp_path):
            pass


def test_any_other_failure_of_a_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, "it burns")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match="it burns"), owned_folder(tmp_path):
        pass


MODULES = ("fcntl", "resource", "termios", "pwd", "grp")
MACOS = {"os": ("sched_getaffinity", "sched_setaffinity"), "signal": ()}
WINDOWS = {
    "os": (*MACOS["os"], "O_CLOEXEC", "O_DIRECTORY", "O_NONBLOCK", "sysconf", "getuid", "geteuid", "fork", "killpg"),
    "signal": ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGKILL"),
}


def hide(names: Mapping[str, Sequence[str]], modules: Sequence[str]) -> None:
    """Forgets all of our modules, which are imported anew with modules that lack the names.

    Libraries that are there already keep them: they ask for the system's name, which is not changed here."""
    for name in modules:
        sys.modules[name] = None  # type: ignore[assignment]
    for owner, attributes in names.items():
        poorer = ModuleType(owner)
        there = vars(sys.modules[owner]).items()
        vars(poorer).update({name: value for name, value in there if name not in attributes})
        sys.modules[owner] = poorer
    for name in [name for name in sys.modules if name.split(".")[0] == "peftcli"]:
        del sys.modules[name]


def in_a_poorer_fork(
    arguments: list[str], names: Mapping[str, Sequence[str]], modules: Sequence[str]
) -> tuple[int, str]:
    def arm() -> None:
        hide(names, modules)
        from peftcli.cli.entry import run

        # the fork's own way on needs the names again
        os._exit(run(arguments))

    return Child(arguments, arm=arm).end()


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(("names", "modules"), [(MACOS, ()), (WINDOWS, MODULES)], ids=["macOS", "Windows"])
def test_a_run_where_names_of_linux_are_missing(
    tmp_path: Path, names: Mapping[str, Sequence[str]], modules: Sequence[str]
) -> None:
    recipe, folder, whole = write_recipe(tmp_path), tmp_path / "run", tmp_path / "whole"
    assert in_a_fork(["train", str(recipe), "--output", str(whole), "--quiet"])[0] == 0
    code, text = in_a_poorer_fork(["train", str(recipe), "--output", str(folder), "--quiet"], names, modules)
    assert code == 0, text
    require_whole(folder, whole, names)
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["peak_memory_bytes"] > 1 << 28
    # without the locks of this system a file owns the folder, and nothing of it is left
    assert ("has no locks" in text) == bool(modules)
    assert not owner(folder).exists()
    code, text = in_a_poorer_fork(["plan", str(recipe)], names, modules)
    assert code == 0, text


def test_only_one_file_asks_what_the_system_is() -> None:
    """What only some systems have is named in `system.py`, nowhere else."""
    special = re.compile(
        r"import (fcntl|resource|termios|pwd|grp|msvcrt)\b|sched_getaffinity|sysconf|os\.(fork|getuid|geteuid|killpg)\b"
        r"|O_(CLOEXEC|DIRECTORY|NONBLOCK)|signal\.SIG(USR|HUP|ALRM|KILL)"
    )
    package = Path(files.__file__).parent
    found = {path.name for path in package.rglob("*.py") if special.search(path.read_text(encoding="utf-8"))}
    assert found <= {"system.py"}
