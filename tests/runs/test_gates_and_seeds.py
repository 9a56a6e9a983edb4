"""`expect` and `seeds`: gates are kept or the run fails with the table; several seeds give a mean and an interval."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from pathlib import Path

import pytest

import peftcli
from peftcli.cli.entry import run as peft
from peftcli.errors import CheckFailed, RecipeError
from peftcli.jobs.opening import locate
from peftcli.lock.lock_file import read_lock
from peftcli.recipe import load_recipe, parse_gate
from peftcli.reports.metric_facts import MetricFacts
from peftcli.reproduce.job import reproduce
from peftcli.runs.gates import gate_results, gate_table
from peftcli.runs.seeds import _means, mean_interval

HOLDS = [
    ("< 1.2", 1.1, None, True),
    ("< 1.2", 1.2, None, False),
    ("<=1.2", 1.2, None, True),
    (">= .9", 0.9, None, True),
    (" > 1e-3 ", 0.0, None, False),
    ("== 1", 1.0, None, True),
    ("< 0.8 * base", 0.79, 1.0, True),
    ("< 0.8*base", 0.8, 1.0, False),
    ("< base", 0.9, 1.0, True),
    (">= base", 0.9, 1.0, False),
    ("< 0.8 * base", 0.1, None, False),
    ("< 1.2", math.nan, None, False),
]


@pytest.mark.parametrize(("text", "value", "base", "holds"), HOLDS, ids=[f"{case[0]} {case[1]}" for case in HOLDS])
def test_gates(text: str, value: float, base: float | None, holds: bool) -> None:
    assert parse_gate(text).holds(value, base) is holds


@pytest.mark.parametrize("text", ["", "1.2", "< x", "< 1.2 * tuned", "~ 3", "< 1.2 base", "< -", "< 1 < 2"])
def test_what_is_no_gate(text: str) -> None:
    with pytest.raises(ValueError, match="write one such as"):
        parse_gate(text)


def test_a_metric_that_was_not_measured_is_not_met() -> None:
    found = gate_results({"eval_loss": "< 1", "eval_f1": "> 0.5"}, {"eval_loss": 2.0}, {"eval_loss": 0.5})
    assert [gate.held for gate in found] == [True, False]
    assert "eval_f1" in gate_table(found, {})


def with_keys(work: Path, *lines: str) -> Path:
    path = work / "gated.yaml"
    text = (work / "tiny.yaml").read_text().replace("max_steps: 6", "max_steps: 3")
    path.write_text(text + "".join(f"{line}\n" for line in lines))
    return path


def test_gates_that_hold_are_in_the_record(work: Path) -> None:
    record = peftcli.train(with_keys(work, 'expect: {eval_loss: "< base"}'), output="held")
    assert [(gate.metric, gate.held) for gate in record.expect] == [("eval_loss", True)]


def test_an_unmet_gate_ends_with_exit_10_after_the_run_is_complete(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = with_keys(work, 'expect: {eval_loss: "< 0.01 * base"}')
    assert peft(["train", str(path), "--output", "unmet", "--quiet"]) == 10
    printed = capsys.readouterr()
    assert "< 0.01 * base" in printed.err
    assert "NO" in printed.err
    record = json.loads((work / "unmet" / "run.json").read_text())
    assert record["status"] == "completed"
    assert record["expect"][0]["held"] is False
    assert (work / "unmet" / "adapter" / "adapter_model.safetensors").is_file()
    assert peft(["train", str(path), "--output", "unmet", "--replace", "--quiet", "--json"]) == 10
    assert json.loads(capsys.readouterr().out)["expect"][0]["held"] is False, "one document, and it says why"
    with pytest.raises(CheckFailed, match="not met"):
        peftcli.train(path, output="from-python")


def test_a_gate_of_a_metric_that_is_not_computed_is_a_mistake(work: Path) -> None:
    with pytest.raises(RecipeError, match="not computed"):
        load_recipe(with_keys(work, 'expect: {eval_f1: "> 0.5"}'))


# -- seeds -------------------------------------------------------------------------------------------------------


def test_the_interval_is_student_t() -> None:
    mean, (low, high) = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert high - mean == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert mean - low == pytest.approx(high - mean)
    assert mean_interval([5.0]) == (5.0, (5.0, 5.0))
    _, (low, high) = mean_interval([0.0, 1.0] * 30)
    assert high - low == pytest.approx(2 * 2.0010 * statistics.stdev([0.0, 1.0] * 30) / math.sqrt(60), rel=1e-3)


FACTS = {"eval_exact_match": MetricFacts(better="higher", fraction=True), "eval_loss": MetricFacts(better="lower")}
Ends = tuple[float, float]


def scored(loss: float, exact: float, rows: Ends = (0.0, 0.088)) -> tuple[dict[str, float | None], dict[str, Ends]]:
    return {"eval_loss": loss, "eval_exact_match": exact}, {"eval_loss": (1.9, 2.2), "eval_exact_match": rows}


def test_seeds_that_agree_are_no_certainty() -> None:
    """Three times 0 of 40, and the one base of all seeds: the rows are what is uncertain then."""
    means, intervals = _means([scored(2.0, 0.0)] * 3, FACTS)
    assert means == {"eval_loss": 2.0, "eval_exact_match": 0.0}
    assert intervals == {"eval_loss": (1.9, 2.2), "eval_exact_match": (0.0, 0.088)}
    _, apart = _means([scored(2.0, 0.0, (0.0, 0.1)), scored(2.1, 0.0, (0.0, 0.3))], FACTS)
    assert apart["eval_exact_match"] == (0.0, 0.3)
    assert apart["eval_loss"][0] < 2.0 < 2.1 < apart["eval_loss"][1]


def test_a_share_stays_between_none_and_all() -> None:
    _, found = _means([scored(2.0, share) for share in (0.9, 1.0, 1.0)], FACTS)
    mean, half = 0.9667, 4.303 * statistics.stdev([0.9, 1.0, 1.0]) / math.sqrt(3)
    assert mean + half > 1.0, "what Student's t says by itself"
    assert found["eval_exact_match"] == pytest.approx((mean - half, 1.0), abs=1e-3)


SAMPLED = """\
model: builtin:tiny
data: {train: builtin:support, validation: 4, max_length: 256}
method: lora
training: {max_steps: 1, batch_size: 2, learning_rate: 1e-9}
evaluation: {samples: 2}
generation: {do_sample: true, temperature: 2.0, max_new_tokens: 12}
checkpoint: {every: null}
threads: 1
seeds: 3
"""


def test_each_seed_has_its_own_draws_and_its_own_clock(tmp_path: Path) -> None:
    """The rate moves nothing: what differs between the seeds' answers of the base is what was drawn for them."""
    (tmp_path / "r.yaml").write_text(SAMPLED)
    began = time.monotonic()
    record = peftcli.train(tmp_path / "r.yaml", output=tmp_path / "run")
    wall = time.monotonic() - began
    found = [json.loads(path.read_text()) for path in sorted((tmp_path / "run").glob("seed-*/run.json"))]
    answers = [tuple(sample["base"] for sample in each["samples"]) for each in found]
    assert len(set(answers)) == 3
    again = peftcli.train(tmp_path / "r.yaml", output=tmp_path / "again", overrides={"seeds": 1, "seed": 43})
    assert tuple(sample.base for sample in again.samples) == answers[1], "and the same again for the same seed"
    parts = [each["seconds"] for each in found]
    assert all(0 < each["startup"] < each["total"] for each in parts)
    assert all(each["training"] > 0 for each in parts)
    assert record.seconds.total == pytest.approx(sum(each["total"] for each in parts))
    assert record.seconds.total <= wall, "each second counts for one seed only"
    assert record.seconds.total > 0.6 * wall, "and for one of them"


def test_seeds_are_whole_runs_with_a_mean_a_lock_and_a_way_back(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = with_keys(work, "seeds: 2", 'expect: {eval_loss: "< base"}')
    record = peftcli.train(path, output="several")
    run = work / "several"
    losses = [
        json.loads((run / name / "run.json").read_text())["evaluation"]["tuned"]["eval_loss"]
        for name in ("seed-42", "seed-43")
    ]
    assert losses[0] != losses[1]
    assert record.evaluation.tuned["eval_loss"] == pytest.approx(statistics.fmean(losses))
    low, high = record.evaluation.intervals.tuned["eval_loss"]
    assert low < min(losses) <= max(losses) < high
    assert [entry.seed for entry in record.seeds] == [42, 43]
    assert all(gate.held for gate in record.expect)
    assert "seeds 42, 43" in (run / "report.md").read_text()
    assert (run / "report.html").is_file()
    alone = peftcli.train("tiny.yaml", output="alone", overrides=["training.max_steps=3", "seed=43"])
    assert alone.evaluation.tuned["eval_loss"] == losses[1], "a seed's run is the run of that seed"

    expected = read_lock(run / "recipe.lock").expected
    assert expected is not None
    assert [trace.seed for trace in expected.runs] == [42, 43]
    value, band_low, band_high = expected.tuned["eval_loss"]
    assert (band_low, band_high) == pytest.approx((value * 0.995, value * 1.005))
    assert [trace.tuned for trace in expected.runs] == [{"eval_loss": loss} for loss in losses]

    with pytest.raises(peftcli.PeftcliError, match="each of 2 seeds"):
        locate(run)
    assert peft(["lock", str(run)]) == 0
    assert peft(["reproduce", str(path), "--json", "--quiet"]) == 0
    capsys.readouterr()
    found = reproduce(path, steps=1)
    assert [result.seed for result in found.seeds] == [42]
    with pytest.raises(CheckFailed, match="results of the seeds 42, 43; the recipe runs 42"):
        reproduce(path, steps=1, overrides=["seeds=1"])

    # the second seed is lost: resuming runs it again, and only it
    shutil.rmtree(run / "seed-43")
    first = (run / "seed-42" / "run.json").stat().st_mtime_ns
    assert peftcli.resume(run).evaluation.tuned == record.evaluation.tuned
    assert (run / "seed-42" / "run.json").stat().st_mtime_ns == first
