"""Fast paths in a whole run: chosen, named in what the run leaves, pinned by its lock, and equal up to rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import peftcli
from peftcli.cli.entry import run as peft
from peftcli.kernels.names import KERNELS
from peftcli.planning.plan import make_plan
from peftcli.recipe import load_recipe

RECIPE = """
model: {base: "builtin:tiny"}
data: {train: {path: "builtin:support", rows: 48}, validation: 8, max_length: 160}
method: {type: lora, r: 4}
training: {max_steps: 8, batch_size: 8, learning_rate: 2e-3}
evaluation: {every: null, samples: 0, rows: 4}
checkpoint: {every: null}
threads: 1
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fast")
    (folder / "r.yaml").write_text(RECIPE, encoding="utf-8")
    for name, kernels in (("plain", "off"), ("fast", "auto")):
        peftcli.train(folder / "r.yaml", output=folder / name, overrides=[f"training.kernels={kernels}"])
    return folder


def record(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "run.json").read_text()))


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "train"]


def test_losses_differ_by_rounding_only(runs: Path) -> None:
    plain, fast = losses(runs / "plain"), losses(runs / "fast")
    assert plain[0] > 1.1 * plain[-1], "the loss moves far more than rounding does"
    assert fast == pytest.approx(plain, rel=1e-4)


def test_a_run_names_what_it_took(runs: Path) -> None:
    assert record(runs / "fast")["settings"]["kernels"] == dict.fromkeys(KERNELS, "taken")
    assert record(runs / "plain")["settings"]["kernels"] == "off"
    assert "kernels.low_rank" in (runs / "fast" / "report.html").read_text()
    assert load_recipe(runs / "fast" / "recipe.yaml", ()).recipe.training.kernels == list(KERNELS)
    assert load_recipe(runs / "plain" / "recipe.yaml", ()).recipe.training.kernels == "off"


def test_a_lock_holds_the_run_to_its_own_fast_paths(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A lock that says off, as all that were made before there was any, is reproduced plainly, whatever auto is now."""
    for name in ("plain", "fast"):
        copy = runs / f"{name}.yaml"
        copy.write_text(RECIPE, encoding="utf-8")
        lock = json.loads((runs / name / "recipe.lock").read_text())
        assert lock["recipe"]["training.kernels"][0] == ("off" if name == "plain" else list(KERNELS))
        assert peft(["reproduce", str(runs / name), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert "bit for bit" in json.dumps(found) or found.get("level") == "bytes"


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("lora", ["low_rank", "gated_mlp", "label_loss"]),
        ("dora", ["low_rank", "gated_mlp", "label_loss"]),
        ("ia3", ["gated_mlp", "label_loss"]),
        ("{type: lora, lora_dropout: 0.1}", ["gated_mlp", "label_loss"]),
        ("pissa", ["gated_mlp", "label_loss"]),
    ],
)
def test_auto_takes_what_the_run_can_use(method: str, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("{type: lora, r: 4}", method), encoding="utf-8")
    plan = make_plan(load_recipe(path, ()))
    assert list(plan.resolved.kernels) == expected
    assert plan.to_dict()["kernels"] == expected


def test_a_fast_path_that_nothing_can_use_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("{type: lora, r: 4}", "ia3"), encoding="utf-8")
    plan = make_plan(load_recipe(path, ["training.kernels=[low_rank]"]))
    assert [warning for warning in plan.warnings if "low_rank" in warning] == [
        "training.kernels names low_rank, which nothing in this run can use"
    ]
