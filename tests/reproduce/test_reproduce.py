"""`peft reproduce`: what is the same reproduces bit for bit; what differs is named, with the first step and the cause."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import xmlschema

import peftcli
from peftcli.cli.entry import run as peft
from peftcli.data.builtin import builtin_data
from peftcli.errors import RecipeError
from peftcli.lock import environment
from peftcli.lock.lock_file import read_lock, write_lock
from peftcli.planning.plan import prepare_run
from peftcli.recipe import load_recipe
from peftcli.reproduce.job import reproduce
from peftcli.reproduce.junit import junit_xml
from peftcli.reproduce.rendering import reproduction_markdown, reproduction_text
from peftcli.reproduce.result import ComparedPart, Reproduction, SeedResult
from peftcli.runs.assembly import Assembly
from peftcli.training import stepper


def edit(work: Path, old: str, new: str) -> None:
    text = (work / "tiny.yaml").read_text()
    assert old in text
    (work / "tiny.yaml").write_text(text.replace(old, new))


def items(found: Reproduction) -> list[str]:
    return [difference.item for difference in found.inputs]


def test_an_unchanged_recipe_reproduces_and_leaves_nothing_behind(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in work.iterdir())
    assert peft(["reproduce", "tiny.yaml", "--strict", "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["reproduced"] is True
    assert document["level"] == "bytes"
    assert document["first_differing_step"] is None
    assert document["seeds"][0]["steps"] == 6
    assert sorted(path.name for path in work.iterdir()) == before


def test_the_first_steps_alone_are_quick_and_on_the_schedule_of_the_whole(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert peft(["reproduce", "run", "--steps", "3", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "seed 42, 3 steps" in printed
    assert "reproduced: bit for bit" in printed
    assert reproduce("tiny.yaml", steps=99).seeds[0].steps == 6


def test_dropout_reproduces_and_its_draws_are_part_of_the_trace(work: Path) -> None:
    edit(work, "r: 4", "r: 4, lora_dropout: 0.2")
    peftcli.train("tiny.yaml", output="dropped")
    before, after = read_lock(work / "tiny.lock").expected, read_lock(work / "dropped" / "recipe.lock").expected
    assert before is not None
    assert after is not None
    assert not set(before.runs[0].draws) & set(after.runs[0].draws)
    assert reproduce("dropped", strict=True).held


def test_a_changed_rate_parts_the_numbers_at_the_second_step(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(work, "2e-3", "3e-3")
    assert peft(["reproduce", "tiny.yaml", "--json", "--quiet"]) == 10
    document = json.loads(capsys.readouterr().out)
    assert [item["item"] for item in document["inputs"]] == ["training.learning_rate"]
    assert document["first_differing_step"] == 2
    assert document["parted_by"] == "numbers"
    assert "training.learning_rate" in document["seeds"][0]["parting"]["detail"]
    kept = Path(document["folder"])
    assert (kept / "run.json").is_file(), "a run that differs is kept, to be looked at"


def test_a_changed_seed_parts_the_data_order_at_once(work: Path) -> None:
    found = reproduce("tiny.yaml", overrides=["seed=43"], steps=2)
    assert not found.held
    assert items(found) == ["seed"]
    assert found.parting is not None
    assert (found.parting.step, found.parting.what) == (1, "data order")
    assert found.parting.detail.endswith("inputs that differ: seed")


def test_one_changed_data_byte_is_found_where_it_is_trained_on(work: Path) -> None:
    prepared = prepare_run(load_recipe(work / "tiny.yaml"))
    origin = prepared.data.train[int(prepared.order.batch(0, 0)[0])].origin
    rows = (work / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    rows[origin.line - 1] = rows[origin.line - 1].replace('"content": "', '"content": "X', 1)
    (work / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    found = reproduce("tiny.yaml")
    assert items(found) == ["data file ./rows.jsonl"]
    assert not found.held
    assert found.parting is not None
    assert found.parting.what == "data order"


def test_one_changed_byte_of_the_base_is_named(work: Path) -> None:
    path = work / "base" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4001] ^= 0x40  # an exponent bit
    path.write_bytes(bytes(data))
    found = reproduce("tiny.yaml", steps=2)
    assert items(found) == ["base file model.safetensors"]
    assert not found.held
    assert found.parting is not None
    assert found.parting.what == "numbers"


def test_another_package_version_is_named_and_lowers_what_is_owed(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == "safetensors" else version(name))
    found = reproduce("tiny.yaml", steps=2)
    assert items(found) == ["package safetensors"]
    assert found.seeds[0].wanted == "metrics"
    assert found.held
    assert not reproduce("tiny.yaml", steps=2, strict=True).held


def test_another_processor_owes_the_trace_only(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "processor_name", lambda: "another processor")
    told: list[str] = []
    found = reproduce("tiny.yaml", steps=2, say=told.append)
    assert found.seeds[0].wanted == "trace"
    assert found.held
    assert found.inputs == ()
    assert "another processor" in told[0]
    strict = reproduce("tiny.yaml", steps=2, strict=True)
    assert not strict.held
    assert "strictly" in reproduction_text(strict)


def test_other_vector_units_reproduce_within_tolerance_and_say_so(work: Path) -> None:
    """Torch's plain kernels round differently from those that the lock was made with: another machine, for once real."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this machine has no vector units to leave out")
    command = [sys.executable, "-m", "peftcli", "reproduce", "tiny.yaml", "--json", "--quiet"]
    done = subprocess.run(
        command,
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["level"] in ("trace", "metrics")
    assert document["seeds"][0]["wanted"] == "trace"
    assert [item["item"] for item in document["environment"]] == ["cpu_capability", "variables"]
    assert "adapter" in [item["name"] for item in document["seeds"][0]["findings"] if item["passed"] is None]


CHANGED_INPUTS = {
    "validation": (["data.validation=./held.jsonl"], "held.jsonl", "data file ./held.jsonl"),
    "template": (["model.chat_template=./t.jinja"], "t.jinja", "chat template"),
    "configuration of the base": ([], "base/generation_config.json", "base file generation_config.json"),
    "tokenizer": ([], "base/tokenizer_config.json", "base file tokenizer_config.json"),
}


@pytest.mark.parametrize("case", CHANGED_INPUTS)
def test_an_input_that_differs_is_named_first(work: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One byte of what is only read for scoring, or that changes nothing: never bit for bit, and told first."""
    settings, name, item = CHANGED_INPUTS[case]
    rows = builtin_data("support").read_text(encoding="utf-8").splitlines(keepends=True)
    (work / "held.jsonl").write_text("".join(rows[-6:]), encoding="utf-8")
    written = json.loads((work / "base" / "tokenizer_config.json").read_text(encoding="utf-8"))
    (work / "t.jinja").write_text(written["chat_template"], encoding="utf-8")
    recipe = work / "tiny.yaml"
    text = recipe.read_text().replace("max_steps: 6", "max_steps: 2")
    for setting in settings:
        key, value = setting.split("=")
        old = {"data.validation": "validation: 8", "model.chat_template": "model: ./base"}[key]
        assert old in text
        new = f"validation: {value}" if key == "data.validation" else f"model: {{base: ./base, chat_template: {value}}}"
        text = text.replace(old, new)
    recipe.write_text(text)
    peftcli.train(recipe, output="changed-run")
    assert peft(["lock", "changed-run"]) == 0
    path = work / name
    data = path.read_bytes() if path.is_file() else b"{}"
    path.write_bytes(data.replace(b"you", b"You", 1) if b"you" in data and name != "t.jinja" else data + b"\n")
    capsys.readouterr()
    code = peft(["reproduce", "tiny.yaml", "--quiet"])
    printed = capsys.readouterr()
    assert "bit for bit (bytes)" not in printed.out
    outcome = next(line for line in printed.out.splitlines() if "eproduced" in line)
    assert outcome.startswith(f"other inputs than the lock's ({item}"), outcome
    assert code == (10 if case == "validation" else 0), printed
    if case == "validation":
        assert "no step differs, but eval_loss does" in outcome


# -- planted nondeterminism --------------------------------------------------------------------------------------


def test_a_data_worker_that_draws_from_the_shared_stream_is_found(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its fourth call on, a worker swaps a row for one that Python's own stream chooses."""
    rows = Assembly.rows
    calls = 0

    def drawing(self: Assembly, indices: Iterable[int]) -> list[Any]:
        nonlocal calls
        calls += 1
        chosen = list(indices)
        if calls >= 5:  # the probe of the longest rows is the first call
            chosen[0] = random.SystemRandom().randrange(len(self.prepared.data.train))
        return rows(self, chosen)

    monkeypatch.setattr(Assembly, "rows", drawing)
    found = reproduce("tiny.yaml")
    assert not found.held
    assert found.inputs == ()
    assert found.parting is not None
    assert found.parting.what == "data order"
    assert found.parting.step in (4, 5, 6), "a draw may hit the right row by chance"


def test_draws_in_the_forward_pass_that_no_seed_governs_are_found(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulate = stepper.accumulate

    def noisy(setup: Any, batch: Any, *, step: int, **rest: Any) -> Any:
        loss, *others = accumulate(setup, batch, step=step, **rest)
        if step == 3:
            loss = loss * (1.0 + random.SystemRandom().uniform(0.01, 0.1))
        return stepper.Passes(loss, *others)

    monkeypatch.setattr(stepper, "accumulate", noisy)
    found = reproduce("tiny.yaml", steps=4)
    assert found.parting is not None
    assert (found.parting.step, found.parting.what) == (3, "randomness")


def test_a_draw_more_from_the_stream_of_the_forward_pass_is_found(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulate = stepper.accumulate

    def drawing(setup: Any, batch: Any, *, step: int, **rest: Any) -> Any:
        found = accumulate(setup, batch, step=step, **rest)
        if step == 2:
            torch.rand(1)
        return found

    monkeypatch.setattr(stepper, "accumulate", drawing)
    found = reproduce("tiny.yaml", steps=3)
    assert found.parting is not None
    assert (found.parting.step, found.parting.what) == (2, "randomness")


def test_a_last_bit_is_found_as_numbers(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulate = stepper.accumulate

    def rounded(setup: Any, batch: Any, *, step: int, **rest: Any) -> Any:
        loss, *others = accumulate(setup, batch, step=step, **rest)
        return stepper.Passes(torch.nextafter(loss, loss + 1) if step == 2 else loss, *others)

    monkeypatch.setattr(stepper, "accumulate", rounded)
    found = reproduce("tiny.yaml", steps=3)
    assert found.parting is not None
    assert (found.parting.step, found.parting.what) == (2, "numbers")


# -- what cannot be reproduced -----------------------------------------------------------------------------------


def test_a_recipe_without_lock_or_results_is_a_matter_of_usage(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = read_lock(work / "tiny.lock")
    write_lock(work / "tiny.lock", lock.model_copy(update={"expected": None}))
    with pytest.raises(RecipeError, match="no results"):
        reproduce("tiny.yaml")
    (work / "tiny.lock").unlink()
    assert peft(["reproduce", "tiny.yaml"]) == 2
    assert "peft lock" in capsys.readouterr().err
    assert not (work / "runs").exists()


# -- renderings --------------------------------------------------------------------------------------------------


HOSTILE = 'a <b> & "c" \x00 | `x`'


def results() -> list[Reproduction]:
    good = SeedResult(42, 6, "bytes", "bytes", (ComparedPart("adapter", True, "byte-equal"),), None)
    bad = SeedResult(43, 6, "bytes", None, (ComparedPart(HOSTILE, False, HOSTILE), ComparedPart("x", None, "y")), None)
    common: dict[str, Any] = {"strict": False, "prefix": False, "environment": (), "inputs": (), "seconds": 1.25}
    return [
        Reproduction(recipe="recipes/x.yaml", lock="recipes/x.lock", seeds=(good,), **common),
        Reproduction(recipe=HOSTILE, lock=HOSTILE, seeds=(good, bad), folder="runs/x", **common),
    ]


def check_junit(text: str) -> ElementTree.Element:
    """Holds a report to the schema beside this file, and its counts to its cases."""
    xmlschema.XMLSchema(Path(__file__).with_name("junit.xsd")).validate(text)
    root = ElementTree.fromstring(text)
    for suite in root:
        assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))
        assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure"))
    return root


@pytest.mark.parametrize("result", results(), ids=["held", "failed"])
def test_junit_is_valid_whatever_the_texts_hold(result: Reproduction) -> None:
    root = check_junit(junit_xml(result))
    failures = root.findall("testsuite/testcase/failure")
    assert bool(failures) is not result.held
    assert root.find("testsuite/testcase[@name='reproduced']") is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda suite: suite.remove(suite.find("system-err")),
        lambda suite: suite.set("timestamp", "2026-01-01"),
        lambda suite: suite.attrib.pop("hostname"),
        lambda suite: suite.append(suite[1]),
        lambda suite: suite[1].set("seconds", "1"),
    ],
    ids=["part missing", "no moment", "attribute missing", "order", "unknown attribute"],
)
def test_the_schema_refuses_what_a_reader_would(change: Callable[[ElementTree.Element], object]) -> None:
    root = check_junit(junit_xml(results()[0]))
    change(root[0])
    with pytest.raises(xmlschema.XMLSchemaValidationError):
        check_junit(ElementTree.tostring(root, encoding="unicode"))


@pytest.mark.parametrize("result", results(), ids=["held", "failed"])
def test_markdown_and_text_tell_the_same(result: Reproduction) -> None:
    text, markdown = reproduction_text(result), reproduction_markdown(result)
    assert ("NOT reproduced" in text) is not result.held
    assert ("❌" in markdown) is not result.held
    assert "\x00" not in markdown


def test_the_command_writes_junit_and_markdown_and_the_summary_of_a_ci_job(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(work / "summary.md"))
    assert peft(["reproduce", "tiny.yaml", "--steps", "1", "--junit", "out/report.xml", "--quiet"]) == 0
    check_junit((work / "out" / "report.xml").read_text(encoding="utf-8"))
    assert "✅" in (work / "out" / "report.md").read_text(encoding="utf-8")
    assert "✅" in (work / "summary.md").read_text(encoding="utf-8")
