"""Files that somebody made to do harm: nothing of them is executed, nothing outside is read, none costs time or memory.

Each is met by the command that a user would type, in a fork whose processes, imports and openings are watched, and is
answered with one of the contract's codes within 2 seconds of work and 300 MB more than a benign file of its kind.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile_adapters import ADAPTERS
from hostile_adapters import BENIGN as BENIGN_ADAPTER
from hostile_bases import BASES
from hostile_bases import BENIGN as BENIGN_BASE
from hostile_case import CANARY, CPU_SECONDS, EXTRA_BYTES, HANG_SECONDS, Case, Outcome, Scene, meet
from hostile_data import BENIGN as BENIGN_DATA
from hostile_data import DATASETS, TEMPLATES
from hostile_recipes import BENIGN as BENIGN_RECIPE
from hostile_recipes import RECIPES
from hostile_runs import BENIGN as BENIGN_RUN
from hostile_runs import CHECKPOINTS

CASES = [*ADAPTERS, *CHECKPOINTS, *BASES, *TEMPLATES, *DATASETS, *RECIPES]
BENIGN = {case.kind: case for case in (BENIGN_ADAPTER, BENIGN_RUN, BENIGN_BASE, BENIGN_DATA, BENIGN_RECIPE)}


def test_there_are_many() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 100
    assert {case.kind for case in CASES} == set(BENIGN)


@pytest.fixture(scope="session")
def benign(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> dict[str, Outcome]:
    """What a harmless file of each kind costs; the first of two, since nothing is warm for it."""
    found = {}
    for kind, case in BENIGN.items():
        for _ in range(2):
            found[kind] = play(case, tmp_path_factory.mktemp(kind), trained)
        assert found[kind].code == 0, found[kind].text
    return found


def play(case: Case, folder: Path, trained: Path) -> Outcome:
    scene = Scene(folder, trained)
    case.prepare(scene)
    assert case.command is not None
    return meet(case.command, scene.folder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile(case: Case, tmp_path: Path, trained: Path, benign: dict[str, Outcome]) -> None:
    found = play(case, tmp_path, trained)
    assert not (tmp_path / "scene" / CANARY).exists(), "its code was executed"
    assert found.events == [], found.text
    assert "Traceback" not in found.text, found.text
    assert found.code in case.codes, (found.code, found.text)
    assert [part for part in case.says if part not in found.text] == [], found.text
    assert "\x1b[" not in found.text
    assert found.cpu_seconds - benign[case.kind].cpu_seconds < CPU_SECONDS, found.text
    assert found.seconds < HANG_SECONDS / 2, found.text
    extra = found.peak_bytes - benign[case.kind].peak_bytes
    assert extra < EXTRA_BYTES, f"{extra:,} bytes; {found.text}"
