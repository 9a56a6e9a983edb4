"""What all tests share: where the measuring ground is, no hub, few threads, and a run with its lock to start from."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_stand_in import TOKEN, Hub

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests never read or fill the user's token cache."""
    before = os.environ.get("PEFTCLI_CACHE")
    os.environ["PEFTCLI_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["PEFTCLI_CACHE"]
    else:
        os.environ["PEFTCLI_CACHE"] = before


@pytest.fixture(scope="session")
def ground() -> Path:
    """The measuring ground; tests that need it skip without."""
    found = os.environ.get("PEFTCLI_GROUND")
    if not found or not Path(found).is_dir():
        pytest.skip("PEFTCLI_GROUND names no folder")
    return Path(found)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub of the tests' own on this machine, for this process and those that it starts."""
    from huggingface_hub import constants

    found = Hub()
    for name, value in {"HF_ENDPOINT": found.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}.items():
        monkeypatch.setenv(name, value)
    # read once, when the library was loaded
    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield found
    found.close()


LOCKED_RECIPE = """\
model: ./base
data: {train: ./rows.jsonl, validation: 8, max_length: 256}
method: {type: lora, r: 4}
training: {max_steps: 6, batch_size: 4, learning_rate: 2e-3}
evaluation: {samples: 0}
checkpoint: {every: null}
threads: 1
"""
LOCKED_ROWS = 60


@pytest.fixture(scope="session")
def locked_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`work/` with base, rows, recipe and its lock; `work/run` is the run that the lock is of."""
    import peftcli
    from peftcli.data.builtin import builtin_data
    from peftcli.models.builtin import builtin_base
    from peftcli.runs.locking import write_lock_for

    folder = tmp_path_factory.mktemp("locked") / "work"
    folder.mkdir()
    shutil.copytree(builtin_base("tiny"), folder / "base")
    lines = builtin_data("support").read_text(encoding="utf-8").splitlines(keepends=True)[:LOCKED_ROWS]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "tiny.yaml").write_text(LOCKED_RECIPE, encoding="utf-8")
    peftcli.train(folder / "tiny.yaml", output=folder / "run")
    write_lock_for(folder / "run")
    return folder


@pytest.fixture
def work(locked_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, elsewhere, as the working directory."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(locked_once, folder)
    monkeypatch.chdir(folder)
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what tests counted (`record_property("count", ...)`), and the contract suite's checks, from all workers."""
    found = [
        (name, value)
        for report in terminalreporter.stats.get("passed", [])
        if report.when == "call"
        for name, value in getattr(report, "user_properties", ())
    ]
    lines = sorted(str(value) for name, value in found if name == "count")
    checks = [int(value) for name, value in found if name == "checks"]
    if checks:
        left_out = Counter(str(value) for name, value in found if name == "check left out")
        lines.append(f"contract suite: {sum(checks) - left_out.total()} checks on {len(checks)} methods and families")
        lines += [f"  left out {count} times: {reason}" for reason, count in sorted(left_out.items())]
    if lines:
        terminalreporter.section("counts")
        for line in lines:
            terminalreporter.write_line(line)
