"""`peft diff`: nothing between a run and itself; what was changed, where it was changed, and how the updates relate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import peftcli
from peftcli.cli.entry import run as peft
from peftcli.jobs.diff import diff, diff_text
from peftcli.jobs.diff_layers import pair, subspace_overlap


def test_a_run_and_itself_are_equal(work: Path) -> None:
    report = diff("run", "run")
    assert report.recipe == ()
    assert report.lock == ()
    assert report.data == ()
    assert report.summary() == {name: pytest.approx(1.0, abs=1e-5) for name in ("ratio", "cosine", "overlap")}
    assert len(report.layers) == 28


def test_two_runs_differ_in_what_was_changed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peftcli.train("tiny.yaml", output="other", overrides=["seed=5", "method.r=2", "training.max_steps=2"])
    assert peft(["diff", "run", "other", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {row["item"]: (row["a"], row["b"]) for row in document["recipe"]} == {
        "seed": (42, 5),
        "method.r": (4, 2),
        "training.max_steps": (6, 2),
    }
    assert any(row["item"] == "train order_sha256" for row in document["data"])
    metric = document["metrics"][0]
    assert metric["metric"] == "eval_loss"
    assert metric["a"] != metric["b"]
    assert 0 < document["summary"]["overlap"] < 0.9
    text = diff_text(diff("run", "other"))
    assert "method.r" in text
    assert "b - a" in text


def test_an_adapter_scaled_by_minus_two_has_ratio_two_and_cosine_minus_one(work: Path) -> None:
    shutil.copytree(work / "run" / "adapter", work / "scaled")
    path = work / "scaled" / "adapter_model.safetensors"
    tensors = {name: t * -2 if "lora_B" in name else t for name, t in load_file(path).items()}
    save_file(tensors, path)
    report = diff("run/adapter", "scaled", base=str(work / "base"))
    assert report.recipe_kind == "adapter_config"
    assert report.lock is None
    assert report.metrics is None
    for layer in report.layers:
        assert layer.ratio == pytest.approx(2.0, rel=1e-4)
        assert layer.cosine == pytest.approx(-1.0, abs=1e-4)
        assert layer.overlap == pytest.approx(1.0, abs=1e-3)


def test_without_the_base_the_stored_tensors_are_compared(work: Path) -> None:
    shutil.move(work / "run" / "adapter", work / "alone")
    document = json.loads((work / "alone" / "peftcli.json").read_text())
    (work / "alone" / "peftcli.json").write_text(
        json.dumps({**document, "base": {**document["base"], "name": "./gone"}})
    )
    report = diff("alone", "alone")
    assert "as stored" in report.notes[0]
    assert report.summary()["cosine"] == pytest.approx(1.0)


def test_what_is_no_run_is_refused(work: Path) -> None:
    assert peft(["diff", "run", "nowhere"]) == 4


def test_overlap_of_spaces() -> None:
    generator = torch.Generator().manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(64, 64, generator=generator))
    mix = torch.randn(4, 48, generator=generator)
    one, shared, apart = basis[:, :4] @ mix, basis[:, 2:6] @ mix, basis[:, 4:8] @ mix
    assert subspace_overlap(one, one) == pytest.approx(1.0, abs=1e-4)
    assert subspace_overlap(one, shared) == pytest.approx(0.5, abs=1e-4)
    assert subspace_overlap(one, apart) == pytest.approx(0.0, abs=1e-4)
    assert subspace_overlap(torch.ones(8), torch.ones(8)) is None
    wide = torch.zeros(600, 700)
    wide[:600, :48].addmm_(torch.randn(600, 4, generator=generator), mix)
    assert subspace_overlap(wide, 3 * wide) == pytest.approx(1.0, abs=1e-4)


def test_a_zero_or_missing_side_has_no_direction() -> None:
    found = pair("x", torch.zeros(3, 3), torch.ones(3, 3))
    assert (found.norm_a, found.cosine, found.overlap) == (0.0, None, None)
    assert pair("x", None, torch.ones(3, 3)).norm_a is None
    assert pair("x", torch.ones(2, 3), torch.ones(3, 3)).ratio is None
