"""The disk fails at every point of a run's saves; afterwards the run resumes by itself, to the same bytes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peftcli import files
from peftcli.errors import StorageError
from peftcli.training.config import CheckpointConfig
from peftcli.training.loop import fit

MakeTiny = Callable[..., Any]
Forked = Callable[[Callable[[], None]], Any]

OPTIONS: dict[str, Any] = {
    "steps": 7,
    "dropout": 0.2,
    "evaluate_every": 2,
    "checkpoint": CheckpointConfig(every=3, keep=1),
    "keep": 1,
}
KINDS = ["kill", "kill half a write", "full from here on", "broken once", "short write"]
SAMPLE = 5


class FaultyDisk(files.Disk):
    """Fails at the `point`-th call that changes the disk (counted from 0); without a point it only counts."""

    def __init__(self, kind: str = "", point: int = -1) -> None:
        self.kind, self.point, self.calls = kind, point, 0
        self.writes: list[int] = []

    def _pass(self) -> bool:
        """Counts one call; fails for the kinds that fail before it; True at the point for those that fail in it."""
        now, self.calls = self.calls, self.calls + 1
        if now == self.point and self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if now == self.point and self.kind == "broken once":
            raise OSError(errno.EIO, "Input/output error")
        if self.point <= now and self.kind == "full from here on":
            raise OSError(errno.ENOSPC, "No space left on device")
        return now == self.point

    def create(self, path: Path) -> int:
        self._pass()
        return super().create(path)

    def write(self, descriptor: int, data: memoryview) -> int:
        self.writes.append(self.calls)
        if self._pass():
            written = super().write(descriptor, data[: max(1, len(data) // 2)])
            if self.kind == "kill half a write":
                os.kill(os.getpid(), signal.SIGKILL)
            return written
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._pass()

    def rename(self, source: Path, target: Path) -> None:
        self._pass()
        super().rename(source, target)

    def remove_tree(self, path: Path) -> None:
        if self._pass() and self.kind == "kill half a write":
            os.unlink(next(path.rglob("*.safetensors")))
            os.kill(os.getpid(), signal.SIGKILL)
        super().remove_tree(path)

    def make_folder(self, path: Path) -> None:
        self._pass()
        super().make_folder(path)


@pytest.fixture
def run(make_tiny: MakeTiny, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def train(folder: Path, disk: files.Disk, *, resume: bool = False) -> Any:
        monkeypatch.setattr(files, "disk", disk)
        tiny = make_tiny(folder, resume=resume, **OPTIONS)
        fit(tiny.setup)
        return tiny

    return train


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [SAMPLE, pytest.param(1, marks=pytest.mark.slow)])
def test_every_point(run: Callable[..., Any], forked: Forked, tmp_path: Path, kind: str, every: int) -> None:
    counting = FaultyDisk()
    expected = run(tmp_path / "whole", counting).weights()
    points = counting.writes if kind in ("kill half a write", "short write") else list(range(counting.calls))
    points = points[KINDS.index(kind) % every :: every]
    for point in points:
        folder = tmp_path / f"point-{point}"
        code, text = forked(lambda: _report(run(folder, FaultyDisk(kind, point)).weights(), expected)).end()  # noqa: B023
        if kind == "short write":
            assert code == 0, text
            continue
        assert code == (-signal.SIGKILL if kind.startswith("kill") else 6), text
        if kind == "full from here on":
            assert "disk full" in text
            assert "Traceback" not in text
        assert run(folder, FaultyDisk(), resume=True).weights() == expected, point
        assert not list(folder.glob(f"{files.TEMPORARY_PREFIX}*")), point
    print(f"{kind}: {len(points)} of {counting.calls} points resumed by themselves to the same bytes")
    assert len(points) >= (counting.calls if every == 1 and "write" not in kind else 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A really small file system, where one may be mounted."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=False)


@pytest.mark.parametrize("look_before", [True, False])
def test_a_disk_that_is_really_full(
    make_tiny: MakeTiny, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look_before: bool
) -> None:
    whole = make_tiny(tmp_path / "whole", **OPTIONS)
    fit(whole.setup)
    if not look_before:
        monkeypatch.setattr(files, "free_bytes", lambda path: 1 << 40)
    ballast = small_disk / "ballast"
    stopped = make_tiny(small_disk / "checkpoints", **OPTIONS)
    inner = stopped.setup.emit

    def fill(event: str, step: int, **facts: Any) -> None:
        inner(event, step, **facts)
        if event == "train" and step == 5:
            ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))

    stopped.setup.emit = fill
    with pytest.raises(StorageError) as caught:
        fit(stopped.setup)
    assert ("bytes are needed" in str(caught.value)) == look_before
    assert ("disk full" in str(caught.value)) != look_before
    assert str(small_disk / "checkpoints") in str(caught.value.where)
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["step-00000003"]
    ballast.unlink()
    resumed = make_tiny(small_disk / "checkpoints", resume=True, **OPTIONS)
    assert fit(resumed.setup).resumed_from == 3
    assert resumed.weights() == whole.weights()


def _report(weights: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert weights == expected
