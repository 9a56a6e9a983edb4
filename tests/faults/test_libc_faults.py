"""The same faults at the level of the C library, at every call: what libraries write by themselves is met as well.

Run by `make test-faults`; `PEFTCLI_FAULT_STRIDE=10` takes every tenth call.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from whole_run import of_this_checkout

HERE = Path(__file__).parent
KINDS = ("kill before", "kill halfway", "full from here on", "broken once", "short write")


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("no C compiler (cc, gcc or clang) on Linux: the C library cannot be stood in for")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(HERE / "shim.c"), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"the shim does not compile here: {done.stderr[:300]}")
    return library


@pytest.mark.faults
@pytest.mark.parametrize("job", ["train", "replace", "merge"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_call(
    shim: Path, tmp_path: Path, job: str, kind: str, record_property: Callable[[str, object], None]
) -> None:
    stride = os.environ.get("PEFTCLI_FAULT_STRIDE", "1")
    environment = {
        **of_this_checkout(), "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        "PEFTCLI_CACHE": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = [sys.executable, str(HERE / "shim_driver.py"), job, kind, str(tmp_path), stride]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["calls"] > 50, "the shim sees the calls"
    assert report["points"] >= report["calls"] // int(stride)
    if job == "replace" and kind != "short write":
        # early ones leave the older run, late ones the newer
        assert 0 < report["kept"] < report["points"]
    record_property(
        "count",
        f"C library, {job}, {kind}: {report['points']} of {report['calls']} calls ended in the same bytes; "
        f"exit codes {report['codes']}",
    )
