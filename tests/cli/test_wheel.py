"""The package as people get it: a wheel that holds everything, alone, in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = ("peftcli", ".ci", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the source tree."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(output), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert sorted(path.name for path in source.iterdir() if path.suffix != ".egg-info") == sorted(SHIPPED)
    (found,) = output.glob("*.whl")
    return found


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")}
    here = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "peftcli").rglob("*")
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in path.relative_to(ROOT).parts)
    }
    assert packed == here


def test_the_wheel_alone_runs_the_quickstart_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    env = {**os.environ, "PYTHONPATH": str(site)}

    def peft(*arguments: str) -> str:
        command = [sys.executable, "-m", "peftcli", *arguments]
        return subprocess.run(command, cwd=empty, env=env, check=True, capture_output=True, text=True).stdout

    peft("init", "quickstart")
    short = ["--set", "training.max_steps=3", "--set", "evaluation.rows=4", "--set", "threads=1"]
    peft("train", "quickstart.yaml", *short, "--output", "run")
    assert (empty / "run" / "adapter" / "adapter_model.safetensors").is_file()
    code = "import peftcli; print(peftcli.__file__)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=empty, env=env, check=True, capture_output=True, text=True)
    assert shown.stdout.startswith(str(site))
