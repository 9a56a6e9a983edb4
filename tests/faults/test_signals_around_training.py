"""Signals outside of the training loop, and a terminal that hangs up: nothing is lost, and what is on disk goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from whole_run import Child, at_step, in_a_fork, losses, of_this_checkout, require_whole, send, write_recipe

from peftcli.lock.lock_file import read_lock

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("signals"))


@pytest.fixture(scope="module")
def whole(warm: None, recipe: Path) -> Path:
    folder = recipe.parent / "whole"
    code, text = in_a_fork(["train", str(recipe), "--output", str(folder), "--quiet"])
    assert code == 0, text
    return folder


def status(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"])


def at(moment: str, act: Callable[[], object]) -> Callable[[], None]:
    """For `Child(arm=...)`: what happens when the run comes to a part of its sentence."""

    def arm() -> None:
        from peftcli import run as sentence
        from peftcli.runs import draft

        owner = draft if moment == "write_adapter_folder" else sentence
        step = getattr(owner, moment)

        def acting(*args: object, **kwargs: object) -> object:
            act()
            return step(*args, **kwargs)

        setattr(owner, moment, acting)

    return arm


def train(recipe: Path, folder: Path, arm: Callable[[], None]) -> tuple[int, str]:
    return Child(["train", str(recipe), "--output", str(folder), "--quiet"], arm=arm).end()


def test_a_terminal_that_hangs_up_saves_and_goes_on(recipe: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, text = train(recipe, folder, at_step(2, send(signal.SIGHUP)))
    assert code == 128 + signal.SIGHUP, text
    assert "stopped by SIGHUP after step 2" in text
    assert status(folder) == "interrupted"
    spent = json.loads((folder / "run.json").read_text(encoding="utf-8"))["seconds"]
    assert 0 < spent["training"] < spent["total"], "the time of the steps that it took"
    assert spent["startup"] > 0
    assert sorted(losses(folder)) == [1, 2]
    assert in_a_fork(["resume", str(folder), "--quiet"])[0] == 0
    require_whole(folder, whole, "SIGHUP")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_the_adapter_is_written_lets_the_run_end(
    recipe: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    code, text = train(recipe, folder, at("write_adapter_folder", send(number)))
    assert code == 0, text
    assert f"{number.name}: training has ended" in text
    require_whole(folder, whole, number)


def test_a_second_signal_while_the_adapter_is_written_leaves_at_once(recipe: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    code, text = train(recipe, folder, at("write_adapter_folder", twice))
    assert code == 143, text
    assert in_a_fork(["resume", str(folder), "--quiet"])[0] == 0
    require_whole(folder, whole, "twice")


@pytest.mark.parametrize("moment", ["prepare_run", "assemble", "score_run"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_around_the_training_loop_is_recorded(
    recipe: Path, whole: Path, tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    code, text = train(recipe, folder, at(moment, send(number)))
    assert code == 128 + number, text
    assert f"stopped by {number.name}" in text
    assert "Traceback" not in text
    assert len(text.strip().splitlines()) <= 3
    begun = moment != "prepare_run"
    # a run is planned before it has a folder
    assert folder.exists() == begun
    assert not begun or status(folder) == "interrupted"
    assert ("peft resume" in text) == begun
    again = ["resume", str(folder)] if begun else ["train", str(recipe), "--output", str(folder)]
    assert in_a_fork([*again, "--quiet"])[0] == 0
    require_whole(folder, whole, moment)


def test_a_signal_that_comes_after_the_last_step_is_not_lost(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """The loop has ended and still listens."""

    def arm() -> None:
        from peftcli.training import loop

        finish = loop._Run.finish

        def acting(self: loop._Run) -> object:
            os.kill(os.getpid(), signal.SIGTERM)
            return finish(self)

        loop._Run.finish = acting  # type: ignore[method-assign, assignment]

    folder = tmp_path / "run"
    code, text = train(recipe, folder, arm)
    assert code == 143, text
    assert in_a_fork(["resume", str(folder), "--quiet"])[0] == 0
    require_whole(folder, whole, "late")


@pytest.mark.parametrize("moment", ["write_recipe", "assemble"])
def test_a_run_killed_before_its_weights_were_loaded_still_knows_its_recipe(
    recipe: Path, whole: Path, tmp_path: Path, moment: str
) -> None:
    folder = tmp_path / "run"
    code, _ = train(recipe, folder, at(moment, send(signal.SIGKILL)))
    assert code == -signal.SIGKILL
    again = ["resume", str(folder)] if moment == "assemble" else ["train", str(recipe), "--output", str(folder)]
    code, text = in_a_fork([*again, "--quiet"])
    assert code == 0, text
    lock, expected = read_lock(folder / "recipe.lock"), read_lock(whole / "recipe.lock")
    assert (folder / str(lock.source)).resolve() == recipe.resolve()
    assert {key: origin for key, (_, origin) in lock.recipe.items() if "small.yaml" in origin} == {
        key: origin.replace(str(expected.source), str(lock.source))
        for key, (_, origin) in expected.recipe.items()
        if "small.yaml" in origin
    }
    require_whole(folder, whole, moment)


CHATS = 60_000
"""Enough for several processes."""


def test_ctrl_c_while_conversations_are_encoded_prints_no_traceback(tmp_path: Path) -> None:
    """A terminal sends it to every process of the command, the workers too."""
    row = json.dumps({"messages": [{"role": "user", "content": "a " * 120}, {"role": "assistant", "content": "b"}]})
    (tmp_path / "chats.jsonl").write_text((row + "\n") * CHATS, encoding="utf-8")
    (tmp_path / "r.yaml").write_text("model: builtin:tiny\ndata: chats.jsonl\nmethod: lora\ntraining: {max_steps: 1}\n")
    environment = {**of_this_checkout(), "PEFTCLI_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-m", "peftcli", "plan", "r.yaml"], cwd=tmp_path, env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for_workers(process)
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert text.strip().splitlines()[-1] == "interrupted"
    assert not workers_of(process.pid)


def workers_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def wait_for_workers(process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if workers_of(process.pid):
            time.sleep(0.3)
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    pytest.fail("no worker within a minute")


def test_a_signal_at_the_end_of_one_seed_keeps_the_next_from_starting(tmp_path: Path) -> None:
    recipe, folder = write_recipe(tmp_path), tmp_path / "run"
    recipe.write_text(recipe.read_text(encoding="utf-8") + "seeds: 2\n", encoding="utf-8")
    code, text = train(recipe, folder, at("write_adapter_folder", send(signal.SIGTERM)))
    assert code == 143, text
    assert "after the run of seed 42" in text
    assert [path.name for path in sorted(folder.glob("seed-*"))] == ["seed-42"]
    assert status(folder / "seed-42") == "completed"
    assert in_a_fork(["resume", str(folder), "--quiet"])[0] == 0
    assert [status(path) for path in (folder, folder / "seed-42", folder / "seed-43")] == ["completed"] * 3
