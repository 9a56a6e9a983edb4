"""The lock: complete, exact, small, free of names; and each changed input is named, by `--locked` with exit 10."""

from __future__ import annotations

import getpass
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import huggingface_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st

import peftcli
from peftcli import files
from peftcli.cli.entry import run as peft
from peftcli.errors import CheckFailed, CheckpointError, ModelError, RecipeError
from peftcli.evaluation.registry import metric_facts
from peftcli.lock import environment
from peftcli.lock.bands import Measured, bands
from peftcli.lock.differences import input_differences
from peftcli.lock.document import Lock
from peftcli.lock.lock_file import read_lock, write_lock
from peftcli.lock.places import absolute, relative
from peftcli.lock.trace import MAX_KEPT_STEPS, Step, hex_of, kept_steps, steps_of, trace_of
from peftcli.models.builtin import builtin_base
from peftcli.models.snapshot import snapshot
from peftcli.models.source import BaseSource
from peftcli.planning.plan import prepare_run
from peftcli.runs import locking
from peftcli.runs.locking import inputs_of, locked_run, pinned_recipe, write_lock_for


def lock_of(work: Path) -> Lock:
    return read_lock(work / "tiny.lock")


# -- what it holds -----------------------------------------------------------------------------------------------


def test_every_run_writes_a_lock_and_peft_lock_puts_it_beside_the_recipe(work: Path) -> None:
    of_run, of_recipe = read_lock(work / "run" / "recipe.lock"), lock_of(work)
    assert of_run.source == "../tiny.yaml"
    assert of_recipe.source == "./tiny.yaml"
    assert of_run.value("data.train") == "../rows.jsonl"
    assert of_recipe.value("data.train") == "./rows.jsonl"
    assert of_run.expected == of_recipe.expected
    assert of_run.packages == of_recipe.packages


def test_the_inputs_are_pinned_by_their_content(work: Path) -> None:
    lock = lock_of(work)
    assert lock.base.files["model.safetensors"] == files.sha256_file(work / "base" / "model.safetensors")
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(lock.base.files)
    assert lock.base.fingerprint is not None
    assert lock.data.sources[0].files == {"./rows.jsonl": files.sha256_file(work / "rows.jsonl")}
    assert lock.data.train.rows == 52
    assert lock.data.validation is not None
    assert lock.tokenizer.template_sha256 is not None
    assert lock.packages["torch"] == metadata.version("torch")
    assert lock.settings["attention"] == "sdpa"
    assert lock.value("threads") == 1
    assert isinstance(lock.value("training.micro_batch_size"), int)


def test_every_value_says_where_it_came_from(work: Path) -> None:
    recipe = lock_of(work).recipe
    assert recipe["training.learning_rate"] == (0.002, "./tiny.yaml:4")
    assert recipe["seed"] == (42, "default")
    assert recipe["training.precision"] == ("fp32", "auto (default)")
    peftcli.train("tiny.yaml", output="again", overrides=["seed=7", "training.max_steps=2"])
    assert read_lock(work / "again" / "recipe.lock").recipe["seed"] == (7, "--set seed")


def test_the_expected_trace_is_exact(work: Path) -> None:
    expected = lock_of(work).expected
    assert expected is not None
    lines = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["event"] == "train"]
    trace = expected.runs[0]
    assert [float.fromhex(str(value)) for value in trace.loss] == [line["loss"] for line in train]
    assert [float.fromhex(str(value)) for value in trace.grad_norm] == [line["grad_norm"] for line in train]
    assert trace.batch == [line["batch"] for line in train]
    assert len(set(trace.batch)) == 6, "batches of an epoch differ"
    assert trace.adapter_sha256 == files.sha256_file(work / "run" / "adapter" / "adapter_model.safetensors")
    value, low, high = expected.tuned["eval_loss"]
    assert low <= value * 0.995 < value < value * 1.005 <= high


def test_a_lock_is_small_and_names_no_host_user_or_absolute_place(work: Path) -> None:
    for path in (work / "tiny.lock", work / "run" / "recipe.lock"):
        text = path.read_text(encoding="utf-8")
        assert len(text) < 16_000
        assert str(work) not in text
        assert '"/' not in text, "an absolute path"
        for name in {socket.gethostname(), getpass.getuser()} - {"root", "localhost", "vm"}:
            assert name not in text


def test_a_path_under_the_home_folder_does_not_name_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    written = relative(tmp_path / "alice" / "models" / "x", tmp_path / "project")
    assert written == "~/models/x"
    assert absolute(written, tmp_path / "project") == tmp_path / "alice" / "models" / "x"
    assert relative(tmp_path / "alice" / "models", tmp_path / "alice" / "project") == "../models"


def test_writing_a_lock_again_gives_the_same_bytes(work: Path) -> None:
    before = (work / "tiny.lock").read_bytes()
    write_lock(work / "tiny.lock", lock_of(work))
    assert (work / "tiny.lock").read_bytes() == before


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"format": 99}', '{"format": 1, "seeds": 3}'])
def test_a_damaged_lock_is_an_error_of_ours(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.lock").write_text(text)
    with pytest.raises(CheckpointError):
        read_lock(tmp_path / "x.lock")


def test_a_trace_with_a_torn_series_is_damaged(work: Path) -> None:
    for old, new in (('"steps": 6', '"steps": 7'), ('["0x', '["zz')):
        text = (work / "tiny.lock").read_text()
        assert old in text
        (work / "torn.lock").write_text(text.replace(old, new, 1))
        with pytest.raises(CheckpointError, match=r"damaged|series|hexadecimal"):
            read_lock(work / "torn.lock")


def test_every_changed_digit_is_noticed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bands, thresholds and the environment's own words too: no input and no result would show them."""
    text, copy = (work / "tiny.lock").read_text(), work / "changed.lock"
    places = [place for place, character in enumerate(text) if character.isdigit()]
    banded = text.index('"eval_loss": [')
    for place in [*random.Random(7).sample(places, 200), *(place for place in places if place > banded)]:
        changed = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
        if json.loads(changed) != json.loads(text):  # the last digits of a number may be beyond what a double holds
            copy.write_text(changed)
            with pytest.raises(CheckpointError):
                read_lock(copy)
    digest = text.rindex('"digest"')
    (work / "tiny.lock").write_text(text[:digest] + text[digest:].replace("1", "2"))
    for command in (["reproduce", "--steps", "1"], ["train", "--locked"]):
        assert peft([command[0], str(work / "tiny.yaml"), *command[1:]]) == 7
        told = capsys.readouterr().err
        assert "the lock is not what was written" in told
        assert f"{work / 'tiny.lock'}" in told
    (work / "tiny.lock").write_text(text)


def test_the_layout_of_a_lock_is_nothing_that_it_pins(work: Path, tmp_path: Path) -> None:
    document = json.loads((work / "tiny.lock").read_text())
    for name, text in {
        "lines": (work / "tiny.lock").read_bytes().replace(b"\n", b"\r\n").decode(),
        "order": json.dumps(dict(reversed(document.items())), indent=4),
        "older": json.dumps({key: value for key, value in document.items() if key != "digest"}),
    }.items():
        (tmp_path / name).write_text(text, newline="")
        assert read_lock(tmp_path / name) == lock_of(work)


def test_a_hub_base_is_pinned_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--someone--base" / "snapshots" / commit
    cached.mkdir(parents=True)
    (cached / "config.json").write_text("{}")
    (cached / "README.md").write_text("not read")
    refs = tmp_path / "models--someone--base" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    found = snapshot(BaseSource("someone/base", "someone/base", None, None))
    assert found.commit == commit
    assert list(found.files) == ["config.json"]
    with pytest.raises(ModelError, match="local cache"):
        snapshot(BaseSource("someone/else", "someone/else", None, None))


@pytest.mark.slow
def test_a_branch_of_the_hub_that_moves_on_leaves_the_lock_where_it_was(work: Path) -> None:
    """Both commits are in the local cache; the lock asks for the one that it was made with."""
    old, new = "1" * 40, "a" * 40
    cached = work / "hub" / "models--someone--base"
    for commit in (old, new):
        shutil.copytree(builtin_base("tiny"), cached / "snapshots" / commit)
    change_weights(cached / "snapshots" / new / "model.safetensors")
    (cached / "refs").mkdir()
    (work / "hub.yaml").write_text((work / "tiny.yaml").read_text().replace("./base", "someone/base"))

    def ran(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "peftcli", *words, "--quiet"],
            cwd=work, env={**os.environ, "HF_HUB_CACHE": str(work / "hub")},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    (cached / "refs" / "main").write_text(old)
    assert ran("train", "hub.yaml", "--output", "hubbed").returncode == 0
    assert ran("lock", "hubbed").returncode == 0
    assert read_lock(work / "hub.lock").base.commit == old
    (cached / "refs" / "main").write_text(new)
    kept = ran("reproduce", "hub.yaml", "--steps", "2", "--strict")
    assert kept.returncode == 0, kept.stdout + kept.stderr
    shutil.rmtree(cached / "snapshots" / old)
    assert ran("train", "hub.yaml", "--locked", "--output", "other").returncode in (4, 11), "that commit is not here"
    moved_on = ran("train", "hub.yaml", "--locked", "--output", "other", "--set", f"model.revision={new}")
    assert moved_on.returncode == 10
    assert "base file model.safetensors: locked" in moved_on.stderr


# -- a changed input is named ------------------------------------------------------------------------------------


def change_data(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray((work / "rows.jsonl").read_bytes())
    place = data.index(b"lamp") if b"lamp" in data else data.index(b" the ") + 1
    data[place] ^= 0x02
    (work / "rows.jsonl").write_bytes(bytes(data))


def change_base(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_weights(work / "base" / "model.safetensors")


def change_weights(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1001] ^= 0x01
    path.write_bytes(bytes(data))


def change_template(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = work / "base" / "tokenizer_config.json"
    document = json.loads(path.read_text())
    template = document.get("chat_template")
    if template is None:
        jinja = work / "base" / "chat_template.jinja"
        jinja.write_text(jinja.read_text() + "{# x #}")
    else:
        path.write_text(json.dumps({**document, "chat_template": template + "{# x #}"}))


def in_recipe(old: str, new: str):  # type: ignore[no-untyped-def]
    def change(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        text = (work / "tiny.yaml").read_text()
        assert old in text
        (work / "tiny.yaml").write_text(text.replace(old, new))

    return change


def change_package(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99.0" if name == "safetensors" else version(name))


CHANGES = {
    "data byte": (change_data, "data file ./rows.jsonl"),
    "base byte": (change_base, "base file model.safetensors"),
    "chat template": (change_template, "chat template"),
    "seed": (in_recipe("threads: 1", "threads: 1\nseed: 43"), "seed"),
    "learning rate": (in_recipe("2e-3", "3e-3"), "training.learning_rate"),
    "rank": (in_recipe("r: 4", "r: 8"), "method.r"),
    "threads": (in_recipe("threads: 1", "threads: 2"), "threads"),
    "package": (change_package, "package safetensors"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_locked_refuses_and_names_what_differs(
    name: str, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, item = CHANGES[name]
    change(work, monkeypatch)
    assert peft(["train", "tiny.yaml", "--locked", "--output", "refused", "--quiet"]) == 10
    printed = capsys.readouterr().err
    assert f"{item}: locked" in printed
    assert not (work / "refused").exists()
    if name in ("seed", "learning rate", "rank", "threads", "package", "base byte"):
        assert printed.count(": locked") == 1, "one cause is one difference, without its consequences"


def test_locked_starts_where_nothing_differs_and_gives_the_locked_adapter(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert peft(["train", "tiny.yaml", "--locked", "--output", "same", "--quiet"]) == 0
    expected = lock_of(work).expected
    assert expected is not None
    found = read_lock(work / "same" / "recipe.lock").expected
    assert found is not None
    assert found.runs == expected.runs
    assert "warning" not in capsys.readouterr().err


def test_locked_without_a_lock_is_refused(work: Path) -> None:
    (work / "tiny.lock").unlink()
    assert peft(["train", "tiny.yaml", "--locked", "--output", "x", "--quiet"]) == 10


def test_another_environment_warns_and_never_blocks(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "processor_name", lambda: "another processor")
    told: list[str] = []
    assert locked_run(Path("tiny.yaml"), (), told.append).loaded.name == "tiny"
    assert len(told) == 1
    assert "another processor" in told[0]


def test_a_renamed_data_file_is_the_same_file(work: Path) -> None:
    (work / "rows.jsonl").rename(work / "other.jsonl")
    in_recipe("./rows.jsonl", "./other.jsonl")(work, pytest.MonkeyPatch())
    prepared = prepare_run(pinned_recipe(Path("tiny.yaml"), (), lock_of(work)))
    assert input_differences(lock_of(work), inputs_of(prepared, work), work) == []


def test_auto_values_of_the_machine_are_those_of_the_lock(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`threads: auto` was 3 where the lock was made; here it would be something else."""
    in_recipe("threads: 1\n", "")(work, monkeypatch)
    lock = lock_of(work)
    pinned = lock.model_copy(update={"recipe": {**lock.recipe, "threads": (3, "auto (default)")}})
    assert pinned_recipe(Path("tiny.yaml"), (), pinned).recipe.threads == 3
    assert pinned_recipe(Path("tiny.yaml"), ["threads=2"], pinned).recipe.threads == 2


# -- peft lock ---------------------------------------------------------------------------------------------------


def test_a_run_with_overrides_is_no_run_of_the_recipe(work: Path) -> None:
    peftcli.train("tiny.yaml", output="changed", overrides=["training.max_steps=2"])
    before = (work / "tiny.lock").read_bytes()
    with pytest.raises(CheckFailed, match="not a run of") as caught:
        write_lock_for("changed")
    assert "training.max_steps: locked 2, here 6" in caught.value.render()
    assert (work / "tiny.lock").read_bytes() == before


def test_locking_a_recipe_keeps_results_while_they_hold(work: Path) -> None:
    assert write_lock_for("tiny.yaml").lock.expected is not None
    in_recipe("2e-3", "1e-3")(work, pytest.MonkeyPatch())
    locked = write_lock_for("tiny.yaml")
    assert locked.lock.expected is None
    assert any("dropped" in note for note in locked.notes)
    (work / "tiny.yaml").unlink()
    with pytest.raises(RecipeError, match="gone"):
        write_lock_for("run")


def test_an_interrupted_run_has_inputs_only_and_resuming_completes_its_lock(work: Path) -> None:
    # as a kill leaves it: no adapter, no record yet, a lock of inputs alone
    shutil.rmtree(work / "run" / "adapter")
    (work / "run" / "run.json").unlink()
    lock = read_lock(work / "run" / "recipe.lock")
    write_lock(work / "run" / "recipe.lock", lock.model_copy(update={"expected": None}))
    with pytest.raises(CheckpointError, match="has not finished"):
        write_lock_for("run")
    peftcli.resume("run")
    resumed = read_lock(work / "run" / "recipe.lock")
    assert (resumed.expected, resumed.source, resumed.recipe) == (lock.expected, lock.source, lock.recipe)


def test_the_command_writes_and_tells(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "tiny.lock").unlink()
    assert peft(["lock", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["expected"] is True
    assert (work / "tiny.lock").is_file()
    assert peft(["lock", "run", "--set", "seed=1"]) == 2
    assert peft(["lock", "base"]) == 4
    assert locking.lock_text(write_lock_for("run")).startswith("wrote ")


# -- parts -------------------------------------------------------------------------------------------------------


@given(st.floats())
def test_hex_is_exact(value: float) -> None:
    back = float.fromhex(hex_of(value))
    assert back == value or (back != back and value != value)


@given(st.integers(min_value=1, max_value=200_000))
def test_long_traces_are_thinned(total: int) -> None:
    kept = kept_steps(total)
    assert kept[0] == 1
    assert kept[-1] == total
    assert len(kept) <= MAX_KEPT_STEPS + 1
    assert kept == sorted(set(kept))
    assert total > MAX_KEPT_STEPS or len(kept) == total


def test_a_trace_goes_through_its_document() -> None:
    taken = {1: Step(1.5, 0.1, "aa", "bb"), 3: Step(0.1, 7.25, "cc", "dd")}
    trace = trace_of(taken, seed=1, steps=3)
    assert steps_of(trace) == {1: taken[1], 2: None, 3: taken[3]}


def test_a_band_is_half_a_per_cent_or_what_the_rows_leave_open() -> None:
    assert bands([Measured({"eval_loss": 2.0})])["eval_loss"] == (2.0, 1.99, 2.01)
    found = bands([Measured({"eval_f1": 0.5}, {"eval_f1": (0.4, 0.7)})])
    assert found["eval_f1"] == (0.5, 0.4, 0.7)
    smooth = bands([Measured({"eval_loss": 2.0}, {"eval_loss": (1.8, 2.5)}, {"eval_loss": metric_facts("loss")})])
    assert smooth["eval_loss"] == (2.0, 1.99, 2.01), "a loss has no answers that tip"


@pytest.mark.parametrize("values", [(3.0, 5.0), (1.0, 4.0, 7.0), (4.0, 4.0)])
def test_the_band_of_several_seeds_knows_nothing_of_their_spread(values: tuple[float, ...]) -> None:
    found = bands([Measured({"eval_loss": value}) for value in values])
    assert found["eval_loss"] == (4.0, pytest.approx(3.98), pytest.approx(4.02))


def test_a_metric_that_one_run_lacks_has_no_band() -> None:
    assert bands([Measured({"eval_f1": None})]) == {}
    assert bands([]) == {}
