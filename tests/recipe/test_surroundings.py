"""`validate` finds what a recipe lacks on this machine: all of it at once, each at its place."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from peftcli.cli.entry import run as peft
from peftcli.errors import DataError, DeviceError, ModelError
from peftcli.recipe import load_recipe, surroundings
from peftcli.recipe.surroundings import require_surroundings

GOOD = """model: builtin:tiny
data: {train: builtin:support, validation: builtin:support/validation}
method: lora
"""


def write(folder: Path, text: str) -> Path:
    (folder / "r.yaml").write_text(text)
    return folder / "r.yaml"


def test_a_recipe_whose_things_are_here_passes(tmp_path: Path) -> None:
    require_surroundings(load_recipe(write(tmp_path, GOOD)))
    # a Hub id may be anywhere
    require_surroundings(load_recipe(write(tmp_path, "model: owner/name\ndata: owner/rows\nmethod: lora\n")))


def test_everything_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(surroundings, "_may_have_cuda", lambda: False)
    monkeypatch.setattr(surroundings.importlib.util, "find_spec", lambda name: None)
    path = write(
        tmp_path,
        """model: {base: ./nobase, chat_template: none.jinja}
data: {train: ./nofile.jsonl, validation: nothere.jsonl}
method: lora
device: cuda
training: {optimizer: schedule_free, scheduler: constant}
evaluation: {metrics: [rouge]}
tracking: [wandb]
""",
    )
    assert peft(["validate", str(path)]) == 3
    told = capsys.readouterr().err
    for wanted in (
        "nofile.jsonl",
        "nothere.jsonl",
        "none.jinja",
        "nobase",
        "pytorch_optimizer",
        "rouge_score",
        "wandb",
        "NVIDIA",
    ):
        assert told.count(wanted) >= 1, wanted
    for line in (1, 2, 4, 5, 6, 7):
        assert f"r.yaml:{line}:" in told


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("data: ./rows.jsonl\n", DataError),
        ("data: {train: builtin:support, validation: ./rows.jsonl}\n", DataError),
        ("data: builtin:nothing\n", DataError),
        ("model: ./base\n", ModelError),
        ("model: builtin:huge\n", ModelError),
    ],
)
def test_the_first_thing_gives_the_exit_code(change: str, error: type[Exception], tmp_path: Path) -> None:
    kept = [line for line in GOOD.splitlines() if line.split(":")[0] != change.split(":")[0]]
    with pytest.raises(error):
        require_surroundings(load_recipe(write(tmp_path, "\n".join([*kept, change]))))


def test_a_driver_is_needed_for_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD + "device: cuda\n")
    monkeypatch.setattr(surroundings, "_may_have_cuda", lambda: True)
    require_surroundings(load_recipe(path))
    monkeypatch.setattr(surroundings, "_may_have_cuda", lambda: False)
    with pytest.raises(DeviceError):
        require_surroundings(load_recipe(path))


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize(
    ("lines", "package"),
    [
        ("evaluation: {metrics: [rouge]}", "rouge_score"),
        ("training: {optimizer: prodigy}", "pytorch_optimizer"),
        ("tracking: [wandb]", "wandb"),
    ],
)
def test_packages_are_asked_for_before_a_base_is_opened(
    command: str,
    lines: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # in this module alone: what is imported later looks for packages too
    monkeypatch.setattr(surroundings, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None)))
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, f"model: ./nobase\ndata: builtin:support\nmethod: lora\n{lines}\n")
    assert peft([command, str(path)]) == 5
    told = capsys.readouterr().err
    assert package in told
    assert "nobase" not in told
    assert sorted(each.name for each in tmp_path.iterdir()) == ["r.yaml"]
