"""Several processes train as one: the same rows, the same sums, the same files, written once."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import peftcli
from peftcli.errors import DataError, DeviceError, Interrupted, RecipeError, error_facts, error_from
from peftcli.evaluation.sharing import packed, turns, unpacked
from peftcli.launching import workers
from peftcli.launching.places import Place, place
from peftcli.models.builtin import builtin_base
from peftcli.planning.plan import make_plan
from peftcli.recipe import load_recipe
from peftcli.runs.processes import load_for
from peftcli.training import batch_gradients
from peftcli.training.agreement import put_back, taken
from peftcli.training.batch_gradients import Passes, accumulate, owner, read_rows
from peftcli.training.world import ALONE, World

RECIPE = """
model: builtin:tiny
data: {train: builtin:support, validation: 13, max_length: 256}
method: {type: lora, r: 4, lora_dropout: 0.1}
training: {max_steps: 4, batch_size: 5, micro_batch_size: 2, learning_rate: 2e-3, processes: 2}
evaluation: {every: 2, samples: 2, batch_size: 4, metrics: [loss, token_accuracy]}
generation: {max_new_tokens: 4}
checkpoint: {every: 2}
threads: 1
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same recipe by one process and by two."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "r.yaml").write_text(RECIPE, encoding="utf-8")
    for count in (1, 2):
        peftcli.train(folder / "r.yaml", overrides={"training.processes": count}, output=folder / str(count))
    return {count: folder / str(count) for count in (1, 2)}


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_two_processes_train_the_bytes_of_one(runs: dict[int, Path]) -> None:
    """Parts of a batch, cut and seeded alike, are added in one order, whoever computes them: dropout too is the same."""
    one, two = (load_file(runs[count] / "adapter" / "adapter_model.safetensors") for count in (1, 2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(bool(tensor.abs().max() > 0) for name, tensor in one.items() if "lora_B" in name)


def test_the_log_of_two_processes_is_that_of_one(runs: dict[int, Path]) -> None:
    timed = ("seconds",)
    one, two = (
        [{key: value for key, value in line.items() if key not in timed} for line in _lines(runs[count])]
        for count in (1, 2)
    )
    assert one == two
    times = Counter((line["event"], line["step"]) for line in two)
    assert set(times.values()) == {1}
    assert times["eval", 2] == times["train", 4] == times["checkpoint", 4] == 1


def test_scores_and_answers_of_two_processes_are_those_of_one(runs: dict[int, Path]) -> None:
    one, two = (json.loads((runs[count] / "run.json").read_text(encoding="utf-8")) for count in (1, 2))
    assert one["evaluation"]["tuned"] == two["evaluation"]["tuned"]
    assert one["evaluation"]["intervals"] == two["evaluation"]["intervals"]
    assert one["samples"] == two["samples"] if "samples" in one else True
    assert (one["recipe"]["training.processes"], two["recipe"]["training.processes"]) == (1, 2)
    assert {path.name for path in runs[1].iterdir()} == {path.name for path in runs[2].iterdir()}


# -- the parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("parts", [1, 2, 5, 16])
def test_every_part_has_one_owner_and_none_has_two_more_than_another(processes: int, parts: int) -> None:
    found = Counter(owner(part, processes) for part in range(parts))
    assert set(found) <= set(range(processes))
    counts = [found[rank] for rank in range(processes)]
    assert sum(counts) == parts
    assert max(counts) - min(counts) <= 1


def test_every_process_takes_as_many_turns() -> None:
    class One(World):
        def __init__(self, rank: int, size: int) -> None:
            self.place = Place(rank, size)
            self.pauses = 0

        def pause(self) -> None:
            self.pauses += 1

    worlds = [One(rank, 3) for rank in range(3)]
    taken_turns = [list(turns(range(7), world)) for world in worlds]
    assert taken_turns == [[(0, True), (3, True), (6, True)], [(1, True), (4, True)], [(2, True), (5, True)]]
    assert [world.pauses for world in worlds] == [3, 3, 3]
    # where each holds a part of the model, none computes what the others do not
    for world in worlds:
        world.in_step = True
    assert [len(list(turns(range(7), world))) for world in worlds] == [3, 3, 3]
    assert list(turns(range(7), worlds[2]))[-1] == (6, False)


@pytest.mark.parametrize("kept", [0, batch_gradients.KEPT_NUMBERS], ids=["added up", "part by part"])
def test_a_pass_for_nothing_leaves_no_gradient(make_tiny: Any, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """Of three parts one of two processes has one more: the other keeps in step, and must not count its part twice."""
    monkeypatch.setattr(batch_gradients, "KEPT_NUMBERS", kept)

    class InStep(World):
        in_step = True

        def __init__(self, rank: int) -> None:
            self.place = Place(rank, 2)

    def passes(world: World) -> tuple[Passes, tuple[torch.nn.Parameter, ...]]:
        tiny = make_tiny(num_rows=6, micro_batch_size=2)
        setup = dataclasses.replace(tiny.setup, world=world)
        batch = read_rows(setup, list(range(6)))
        found = accumulate(setup, batch, step=1, micro_batch_size=2, precision=contextlib.nullcontext())
        return found, tuple(setup.adapter.trainable_parameters().values())

    _, wanted = passes(ALONE)
    halves = [passes(InStep(rank))[0] for rank in range(2)]
    shares = [share for half in halves for share in half.shares]
    other = passes(ALONE)[1]
    put_back(torch.stack(shares).sum(dim=0), other)
    assert all(torch.allclose(one.grad, two.grad, rtol=1e-5, atol=1e-8) for one, two in zip(wanted, other, strict=True))


def test_gradients_go_and_come_back() -> None:
    idle, moved = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2, 2))
    shares = []
    for value in (1.0, 2.0):
        moved.grad = torch.full((2, 2), value)
        shares.append(taken(torch.tensor(value), (idle, moved)))
    assert moved.grad is None
    loss = put_back(ALONE.add(shares, (0, 0), length=len(shares[0]), device=torch.device("cpu")), (idle, moved))
    assert float(loss) == 3.0
    assert torch.equal(moved.grad, torch.full((2, 2), 3.0))
    # what took part in no loss is not moved by an optimizer either
    assert idle.grad is None


def test_arrays_and_errors_reach_another_process_whole() -> None:
    array = np.array([[0.1, np.inf], [-0.0, np.nan]])
    assert unpacked(json.loads(json.dumps(packed(array)))).tobytes() == array.tobytes()
    for error in (
        DataError("a row", where="x:1", fix="mend it"),
        Interrupted("stopped", signal_number=15, fix="go on"),
    ):
        found = error_from(json.loads(json.dumps(error_facts(error))))
        assert type(found) is type(error)
        assert found.render() == error.render()


# -- launchers -----------------------------------------------------------------------------------------------------

MEETING = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, Place()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Place()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Place(3, 4, 1, 2)),
        # one process a machine, as an operator of Kubernetes starts it
        ({"RANK": "1", "WORLD_SIZE": "2"}, Place(1, 2, 0, 1)),
        (
            {
                "SLURM_PROCID": "5",
                "SLURM_STEP_NUM_TASKS": "8",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
            },
            Place(5, 8, 1, 4),
        ),
        # the script of a batch job is one process, whatever srun may start later
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, Place()),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, Place(1, 2, 0, 1)),
    ],
)
def test_a_launcher_is_recognised(variables: dict[str, str], found: Place) -> None:
    assert place(variables | MEETING) == found


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4", **MEETING}, "do not fit together"),
        ({"RANK": "x", "WORLD_SIZE": "4", **MEETING}, "RANK is 'x'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT"),
    ],
)
def test_variables_that_make_no_sense(variables: dict[str, str], words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        place(variables)


def test_a_launcher_counts_where_the_recipe_says_nothing(tmp_path: Path) -> None:
    class Four(World):
        place = Place(0, 4)

    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace(", processes: 2", ""), encoding="utf-8")
    loaded, _ = load_for(Four(), path, ())
    assert loaded.recipe.training.processes == 4
    path.write_text(RECIPE, encoding="utf-8")
    with pytest.raises(RecipeError, match="processes is 2, and the launcher has started 4"):
        load_for(Four(), path, ())


# -- recipes -------------------------------------------------------------------------------------------------------


def test_auto_cuts_a_batch_for_all_processes_and_a_number_is_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("micro_batch_size: 2, ", ""), encoding="utf-8")
    plans = [make_plan(load_recipe(path, [f"training.processes={count}"])) for count in (1, 2)]
    assert [plan.resolved.micro_batch_size for plan in plans] == [5, 3]
    told = make_plan(load_recipe(path, ["training.processes=4", "training.micro_batch_size=2"]))
    assert told.resolved.micro_batch_size == 2
    assert any("1 of 4 processes have no rows of a batch" in warning for warning in told.warnings)


@pytest.mark.parametrize(
    ("override", "words"),
    [("model.quantization=nf4", "packed weights"), ("training.compile=true", "compiled layers")],
)
def test_what_a_spread_base_cannot_have_is_refused(tmp_path: Path, override: str, words: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    with pytest.raises(RecipeError, match=words):
        load_recipe(path, ["training.sharding=fsdp", override])


@pytest.mark.slow
def test_a_base_spread_over_two_processes_trains_the_same_bytes(runs: dict[int, Path], tmp_path: Path) -> None:
    """Five rows in parts of two: one process has a part less, and keeps in step with the other."""
    run = tmp_path / "spread"
    peftcli.train(runs[1].parent / "r.yaml", overrides={"training.sharding": "fsdp"}, output=run)
    for name in ("adapter_model.safetensors", "adapter_config.json", "peftcli.json"):
        assert (run / "adapter" / name).read_bytes() == (runs[1] / "adapter" / name).read_bytes()
    one, two = (json.loads((each / "run.json").read_text(encoding="utf-8")) for each in (runs[1], run))
    assert one["updates"] == two["updates"]
    assert one["evaluation"]["tuned"] == two["evaluation"]["tuned"]
    assert two["settings"]["base_bytes_per_process"] <= 0.6 * two["settings"]["base_bytes"]


@pytest.mark.slow
def test_a_spread_base_whose_head_is_its_own(tmp_path: Path) -> None:
    """A loss that goes through the head once more, and backward, must find its weights whole."""
    config = AutoConfig.from_pretrained(builtin_base("tiny"), tie_word_embeddings=False)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(builtin_base("tiny")).save_pretrained(tmp_path / "base")
    (tmp_path / "r.yaml").write_text(RECIPE.replace("builtin:tiny", "./base"), encoding="utf-8")
    for name, overrides in {"one": {"training.processes": 1}, "two": {"training.sharding": "fsdp"}}.items():
        peftcli.train(tmp_path / "r.yaml", overrides=overrides, output=tmp_path / name)
    one, two = ((tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_worker_that_dies_while_the_first_waits_for_it_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.2)
    started = [
        workers._Worker(subprocess.Popen([sys.executable, "-c", code]), io.BytesIO(), None)
        for code in ("import time; time.sleep(60)", "raise SystemExit(3)")
    ]
    before = time.monotonic()
    workers._wait(started)
    workers._end(started)
    assert time.monotonic() - before < 30.0
    assert [(worker.code, worker.ended_by_us) for worker in started] == [(-9, True), (3, False)]
