"""The skill that the built-in base is made for: learnt by three kinds of method, scored exactly on held-out rows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import peftcli
from peftcli.cli.entry import run as peft
from peftcli.run import train

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
AUTO = {"training.learning_rate": "auto"}


@pytest.mark.parametrize(
    ("method", "overrides", "least"),
    [
        ("lora", {}, 0.9),
        pytest.param("bottleneck", AUTO, 0.8, marks=pytest.mark.slow),
        pytest.param("prompt_tuning", AUTO, None, marks=pytest.mark.slow),
    ],
)
def test_the_skill_is_learnt(
    method: str,
    overrides: dict[str, Any],
    least: float | None,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    changes = {**overrides, "method.type": method, "threads": 1, "evaluation.samples": 0}
    record = train(QUICKSTART, output=tmp_path / "run", overrides=changes)
    base, tuned, bounds = record.evaluation.base, record.evaluation.tuned, record.evaluation.intervals
    base_match, match = base["eval_exact_match"], tuned["eval_exact_match"]
    record_property(
        "count",
        f"skill, {method}: exact match {base_match:.1%} -> {match:.1%} of {record.evaluation.rows} rows, loss "
        f"{base['eval_loss']:.3f} -> {tuned['eval_loss']:.2g}, {record.seconds.training:.0f} s of training on one thread",
    )
    assert record.evaluation.rows >= 200
    assert base_match < 0.1
    if least is not None:
        assert match > least
    assert bounds.tuned["eval_loss"][1] < bounds.base["eval_loss"][0]
    assert capfd.readouterr() == ("", ""), "a call from Python prints nothing, nor does a library"
    if method == "lora":
        the_rest_of_the_demo_prints_its_own_lines_only(tmp_path, capfd)


def the_rest_of_the_demo_prints_its_own_lines_only(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`make demo` after its training (whose evaluation is the same again): the merge, then the answers side by side."""
    assert peft(["merge", str(folder / "run"), "--output", str(folder / "merged")]) == 0
    merged = capfd.readouterr()
    assert merged.out.startswith("merged into ")
    assert [line.split()[0] for line in merged.err.splitlines()] == ["computing", "writing"]
    quieting = ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM")
    loud = {name: value for name, value in os.environ.items() if name not in quieting}
    loud["PYTHONPATH"] = str(Path(peftcli.__file__).parents[1])
    script = Path(__file__).parent / "side_by_side.py"
    done = subprocess.run(
        [sys.executable, script, folder / "merged"], capture_output=True, text=True, check=True, env=loud
    )
    assert done.stderr == ""
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["request", "base", "merged", "wanted"]
    answers = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert answers["merged"] == answers["wanted"]
    assert answers["base"] != answers["wanted"]
