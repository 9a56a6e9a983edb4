"""The record: the contract's keys, exactness, errors; and what is read out of metrics.jsonl."""

from __future__ import annotations

import json
import math

import pytest
from example_run import example_record
from pydantic import ValidationError

from peftcli.errors import DataError
from peftcli.reports.data_facts import split_facts
from peftcli.reports.record import RunRecord, load_record
from peftcli.reports.series import read_metrics

CONTRACT = {
    "status": "completed",
    "method": "lora",
    "task": "causal-lm",
    "base": "...",
    "seed": 42,
    "parameters": {"trainable": 0, "total": 0},
    "steps": 0,
    "tokens": 0,
    "trained_tokens": 0,
    "seconds": {"startup": 0.0, "training": 0.0, "total": 0.0},
    "tokens_per_second": 0.0,
    "peak_memory_bytes": 0,
    "model_memory_bytes": 0,
    "predicted": {"peak_memory_bytes": 0},
    "adapter_bytes": 0,
    "evaluation": {"base": {"eval_loss": 0.0}, "tuned": {"eval_loss": 0.0}},
    "warnings": [],
}


def test_run_json_starts_with_the_keys_of_the_contract():
    written = json.loads(RunRecord.model_validate(CONTRACT).to_json())
    assert list(written)[: len(CONTRACT)] == list(CONTRACT)
    for key, value in CONTRACT.items():
        if isinstance(value, dict):
            assert value.items() <= {k: v for k, v in written[key].items() if k in value}.items()
        else:
            assert written[key] == value


def test_a_record_survives_the_disk(tmp_path):
    record = example_record()
    (tmp_path / "run.json").write_text(record.to_json())
    assert load_record(tmp_path) == record
    assert load_record(tmp_path / "run.json") == record


def test_a_record_is_frozen_and_knows_its_keys():
    record = example_record()
    with pytest.raises(ValidationError):
        record.steps = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="nonsense"):
        RunRecord.model_validate({**CONTRACT, "nonsense": 1})


def test_a_number_that_is_not_finite_becomes_null():
    record = RunRecord.model_validate(
        {**CONTRACT, "evaluation": {"base": {"eval_perplexity": math.inf}, "tuned": {"eval_loss": math.nan}}}
    )
    written = json.loads(record.to_json())
    assert written["evaluation"]["base"] == {"eval_perplexity": None}
    assert written["evaluation"]["tuned"] == {"eval_loss": None}


def test_every_fault_of_a_record_is_named_at_once(tmp_path):
    bad = {**CONTRACT, "status": "happy", "steps": "many", "extra": 1}
    del bad["seed"]
    (tmp_path / "run.json").write_text(json.dumps(bad))
    with pytest.raises(DataError) as caught:
        load_record(tmp_path)
    text = str(caught.value)
    for name in ("status", "steps", "extra", "seed"):
        assert f"{name}: " in text
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 5000, b"\xff\xfe", b"[1]", b'{"status": 1e999}'])
def test_a_damaged_record_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(DataError, match=r"run\.json"):
        load_record(tmp_path)


def test_a_missing_record_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no run record"):
        load_record(tmp_path)


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def train(step: int, loss: float | None) -> dict[str, object]:
    return {"event": "train", "step": step, "loss": loss, "learning_rate": 1e-3}


def test_after_a_resume_the_last_value_of_a_step_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        lines(
            {"event": "eval", "step": 0, "eval_loss": 3.0},
            train(1, 3.0),
            train(2, 2.9),
            train(3, 2.8),
            {"event": "resume", "step": 1, "from": "checkpoints/step-00000001"},
            train(2, 2.5),
            {"event": "eval", "step": 2, "eval_loss": 2.0, "eval_exact_match": 0.5},
        )
    )
    series = read_metrics(path)
    assert series.column("loss") == [(1, 3.0), (2, 2.5), (3, 2.8)]
    assert series.evaluation("eval_loss") == [(0, 3.0), (2, 2.0)]
    assert series.evaluation_names() == ["eval_loss", "eval_exact_match"]
    assert [event["event"] for event in series.events] == ["resume"]
    assert series.unreadable == 0


def test_a_torn_last_line_is_not_a_fault(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(train(1, 3.0)) + '{"event": "train", "step": 2, "lo')
    series = read_metrics(path)
    assert series.column("loss") == [(1, 3.0)]
    assert series.unreadable == 0


def test_a_line_written_onto_a_torn_one_is_kept_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "train", "step": 2, "lo' + lines({"event": "resume", "step": 1}, train(2, 2.0)))
    series = read_metrics(path)
    assert [event["event"] for event in series.events] == ["resume"]
    assert series.column("loss") == [(2, 2.0)]


def test_damage_inside_the_log_is_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    digits = '{"event": "train", "step": 3, "loss": ' + "9" * 5000 + "}\n"
    path.write_text(lines(train(1, 3.0)) + "garbage\n[1]\n\n" + digits + lines(train(2, 2.0)))
    series = read_metrics(path)
    assert series.column("loss") == [(1, 3.0), (2, 2.0)]
    assert series.unreadable == 3


def test_nan_and_null_are_steps_without_a_value(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(train(1, 3.0), train(2, None)) + '{"event": "train", "step": 3, "loss": NaN}\n')
    series = read_metrics(path)
    assert series.column("loss") == [(1, 3.0)]
    assert series.nonfinite_steps() == [2, 3]


def test_a_run_that_never_stepped_has_an_empty_series(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl").train == {}


def test_numbers_of_a_record_that_no_page_can_show_are_left_out():
    bins = [[0, math.inf, 3], [0, 4, 3]]
    odd = {
        "rows": 10**400,
        "tokens": math.inf,
        "rows_read": 5,
        "quantiles": {"p50": math.nan, "p90": 3},
        "histogram": bins,
    }
    facts = split_facts({"train": odd}, "train")
    assert facts is not None
    assert (facts.rows, facts.tokens, facts.rows_read) == (None, None, 5)
    assert (facts.quantiles, facts.histogram) == ({"p90": 3.0}, [(0.0, 4.0, 3)])
