"""Whatever a run, a merge or an export writes has the permissions that the user's umask leaves, all files alike."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
from hostile_case import GOOD, one_cpu

from peftcli.cli.entry import run as peft


def in_a_fork(umask: int, commands: list[list[str]], cache: Path) -> None:
    """The umask belongs to the process."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.umask(umask)
            os.environ["PEFTCLI_CACHE"] = str(cache)
            with one_cpu(), open(os.devnull, "w") as sys.stdout:
                code = max(peft(command) for command in commands)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o022], ids=oct)
def test_all_files_alike(umask: int, tmp_path: Path, trained: Path) -> None:
    """`trained`: so that nothing is left to import."""
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "r.yaml").write_text(GOOD, encoding="utf-8")
    run = str(place / "run")
    in_a_fork(
        umask,
        [
            ["train", str(tmp_path / "r.yaml"), "--output", run, "--quiet"],
            ["merge", run, "--output", str(place / "merged"), "--quiet"],
            ["lock", run],
            ["report", run],
        ],
        place / "cache",
    )
    paths = [path for path in place.rglob("*") if not path.is_symlink()]
    names = {path.name for path in paths}
    assert {"run.json", "metrics.jsonl", "adapter_model.safetensors", "model.safetensors", "manifest.json"} <= names
    assert (place / "cache").is_dir()
    wrong = {
        str(path.relative_to(place)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in paths
        if stat.S_IMODE(path.stat().st_mode) != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert wrong == {}
