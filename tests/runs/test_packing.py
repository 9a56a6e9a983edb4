"""Packing: rows in one sequence do not see each other, and training on them is what training on rows alone is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peftcli import adapters
from peftcli.adapters.registry import config_class, own_method_names
from peftcli.adapters.surgery import adapter_of
from peftcli.cli.entry import run as peft
from peftcli.errors import ModelError
from peftcli.planning.plan import Prepared, prepare_run
from peftcli.recipe import load_recipe
from peftcli.run import resume, train
from peftcli.runs import packing
from peftcli.runs.assembly import Assembly, assemble
from peftcli.runs.attaching import attach_method
from peftcli.runs.fitting import fit_setup
from peftcli.tasks.base import TrainingRow
from peftcli.tasks.base_checks import require_rows_apart
from peftcli.tasks.causal_lm import TASK
from peftcli.testing.families import tiny_model
from peftcli.training.activation_checkpointing import checkpointed_blocks
from peftcli.training.batch_gradients import accumulate, read_batch

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def recipe(folder: Path, **sections: Any) -> Path:
    rows = [
        {"prompt": " ".join(WORDS[: 1 + number % 12]), "completion": " ".join(WORDS[: 1 + (7 * number) % 11])}
        for number in range(48)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    document: dict[str, Any] = {
        "model": "builtin:tiny",
        "data": {"train": "rows.jsonl", "validation": 0, "max_length": 128, "packing": True},
        "method": {"type": "lora", "r": 4},
        "training": {"max_steps": 4, "batch_size": 12, "micro_batch_size": 3, "learning_rate": 1e-2},
        "checkpoint": {"every": 2, "keep": 9, "best": None},
        "device": "cpu",
        "threads": 1,
    }
    for section, fields in sections.items():
        document[section] = {**document[section], **fields} if "type" not in fields else fields
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def ready(path: Path, folder: Path) -> Assembly:
    assembly = assemble(prepare_run(load_recipe(path, ())), folder, quiet=True)
    attach_method(assembly, resuming=False)
    return assembly


def gradients(assembly: Assembly, *, packed: bool, micro: int = 3, step: int = 1) -> tuple[float, dict[str, Tensor]]:
    setup = fit_setup(assembly, resuming=False)
    assert setup.pack is not None
    if not packed:
        setup.pack = None
    assembly.model.train()
    batch = read_batch(setup, step)
    loss, *_ = accumulate(setup, batch, step=step, micro_batch_size=micro, precision=nullcontext())
    named = setup.adapter.trainable_parameters()
    found = {name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None}
    for parameter in named.values():
        parameter.grad = None
    return float(loss), found


def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Distance of two gradients of a whole adapter, relative to their size."""
    assert set(ours) == set(theirs)
    one, other = (torch.cat([found[name].flatten().double() for name in sorted(found)]) for found in (ours, theirs))
    return float((one - other).norm() / one.norm())


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Assembly:
    folder = tmp_path_factory.mktemp("packing")
    assembly = ready(recipe(folder), folder / "run")
    packing._disturb(adapter_of(assembly.model))
    return assembly


@pytest.mark.parametrize("micro", [1, 3, 12])
def test_gradients_are_those_of_rows_alone(lora: Assembly, micro: int) -> None:
    loss, packed = gradients(lora, packed=True, micro=micro)
    plain_loss, plain = gradients(lora, packed=False, micro=1)
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    assert apart(packed, plain) < 1e-6


def test_rows_share_sequences_and_fewer_passes(lora: Assembly) -> None:
    setup = fit_setup(lora, resuming=False)
    assert setup.pack is not None
    rows = read_batch(setup, 1).rows
    parts = setup.pack(rows, 3)
    sequences = sum(len(part["input_ids"]) for part in parts)
    assert sequences < len(rows)
    assert all(len(part["input_ids"]) <= 3 for part in parts)
    assert len(parts) < 4
    longest = int(lora.prepared.data.train.lengths.max())
    assert all(part["input_ids"].shape[1] <= longest for part in parts)


class Row:
    def __init__(self, ids: list[int], weights: list[float]) -> None:
        self.input_ids, self.weights = torch.tensor(ids).numpy(), torch.tensor(weights).numpy()
        self.parts, self.labels = (), ()


def test_borders_of_rows_carry_no_loss_and_positions_begin_anew() -> None:
    packs: list[list[TrainingRow]] = [[Row([5, 6, 7], [1, 0, 1]), Row([8, 9], [1, 1])], [Row([4], [1])]]
    batch = TASK.collate_packs(packs, pad_token_id=99)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [4, 99, 99, 99, 99]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert batch["weights"].tolist() == [[0, 0, 1, 0, 1], [0, 0, 0, 0, 0]]
    assert set(batch) == {"input_ids", "position_ids", "weights"}
    alone = [TASK.collate([row], pad_token_id=99) for pack in packs for row in pack]
    assert TASK.weigh(batch) == sum(map(TASK.weigh, alone))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_another_row_moves_no_logit(attention: str) -> None:
    model = tiny_model("llama", attention=attention)
    rows = [[5, 9, 31, 7], [80, 12, 44], [3, 61, 20, 21, 22]]

    def answer(first: list[int]) -> Tensor:
        packs = [[Row(ids, [1] * len(ids)) for ids in [first, *rows[1:]]]]
        with torch.no_grad():
            return TASK.logits(model, TASK.collate_packs(packs, pad_token_id=0))[0]

    before, after = answer(rows[0]), answer([6, 7, 8, 10])
    assert not torch.equal(before[:4], after[:4])
    assert torch.equal(before[4:], after[4:])
    alone = TASK.logits(model, TASK.collate([Row(rows[1], [1] * 3)], pad_token_id=0))[0]
    torch.testing.assert_close(before[4:7], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen", "gemma", "phi", "gpt2", "mixtral", "deepseek"])
def test_bases_that_keep_rows_apart(family: str) -> None:
    require_rows_apart(tiny_model(family), [5, 9, 31, 7, 7, 80, 12, 44, 3, 61])


@pytest.mark.parametrize("family", ["mamba", "jamba", "lfm2", "rwkv", "opt"])
def test_bases_that_keep_a_state_or_mask_by_place_are_refused(family: str) -> None:
    with pytest.raises(ModelError, match=r"packed rows|does not answer") as caught:
        require_rows_apart(tiny_model(family), [5, 9, 31, 7, 7, 80, 12, 44, 3, 61])
    assert "packing: false" in (caught.value.fix or "")


def test_a_leak_into_the_first_token_alone_is_seen() -> None:
    """As of a convolution in the last layer, which nothing after it spreads."""
    model = tiny_model("llama")
    width = model.config.hidden_size

    def leak(_module: Any, _args: Any, out: Tensor) -> Tensor:
        return out + torch.cat([out.new_zeros(len(out), 1, width), out[:, :-1]], dim=1) * 0.1

    model.model.norm.register_forward_hook(leak)
    row = list(range(3, 35))
    with pytest.raises(ModelError, match="a row sees the one before it"):
        require_rows_apart(model, row)


@pytest.mark.parametrize("name", own_method_names())
def test_every_method_keeps_rows_apart_or_says_why_not(name: str) -> None:
    model = tiny_model("gpt2" if name == "bitfit" else "llama")  # a Llama has no biases
    adapters.attach(model, config_class(name)())
    adapter = adapter_of(model)
    packing._disturb(adapter)
    row = [5, 9, 31, 7, 7, 80, 12, 44, 3, 61]
    if adapter.packing_fault() is None:
        require_rows_apart(model, row)
        return
    with pytest.raises(ModelError, match="packed rows"):
        require_rows_apart(model, row)


def test_a_method_that_edits_places_of_a_sequence_says_why_not() -> None:
    model = tiny_model("llama")
    adapters.attach(model, {"type": "reft", "prefix_positions": 2})
    assert "first and last tokens" in (adapter_of(model).packing_fault() or "")


def test_the_trial_leaves_an_adapter_bit_for_bit(lora: Assembly) -> None:
    adapter = adapter_of(lora.model)
    before = {name: tensor.clone() for name, tensor in adapter.state().items()}
    packing.require_rows_apart(lora.prepared, lora.task, lora.model, adapter)
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter.state().items())


def test_a_run_stops_where_its_adapter_mixes_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says nothing beforehand, as a method from elsewhere may."""
    original = packing.require_rows_apart

    def leaking(prepared: Prepared, task: Any, model: Any, adapter: Any = None) -> None:
        if adapter is not None:
            model.model.layers[0].register_forward_hook(lambda _m, _a, out: out + out.mean(dim=1, keepdim=True))
        original(prepared, task, model, adapter)

    monkeypatch.setattr("peftcli.runs.attaching.require_rows_apart", leaking)
    with pytest.raises(ModelError, match="cannot be trained on packed rows"):
        train(recipe(tmp_path), output=tmp_path / "run")


def test_a_prompt_is_refused_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, method={"type": "prompt_tuning"})
    assert peft(["plan", str(path)]) == 2
    said = capsys.readouterr().err
    assert "prompt_tuning does not go with packed rows" in said
    assert "data.packing" in said


def test_packing_that_changes_nothing_is_told(tmp_path: Path) -> None:
    path = recipe(tmp_path, data={"train": "builtin:text", "max_length": 64})
    plan = prepare_run(load_recipe(path, ())).plan
    assert [warning for warning in plan.warnings if "data.packing has no effect" in warning]
    path = recipe(tmp_path)
    assert not [warning for warning in prepare_run(load_recipe(path, ())).plan.warnings if "packing" in warning]


def test_gradients_are_the_same_where_activations_are_computed_again(lora: Assembly) -> None:
    loss, plain = gradients(lora, packed=True)
    with checkpointed_blocks(lora.blocks, 1):
        again, recomputed = gradients(lora, packed=True)
    assert again == loss
    assert apart(plain, recomputed) < 1e-6


def run_of(path: Path, folder: Path) -> Callable[[str], bytes]:
    train(path, output=folder)
    return lambda name: (folder / name).read_bytes()


def test_a_packed_run_goes_on_bit_for_bit_and_tells_its_padding(tmp_path: Path) -> None:
    path = recipe(tmp_path, method={"type": "lora", "r": 4, "lora_dropout": 0.1})
    whole = run_of(path, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "step-00000004")
    shutil.rmtree(tmp_path / "part" / "adapter")
    record = resume(tmp_path / "part")
    assert (tmp_path / "part/adapter/adapter_model.safetensors").read_bytes() == whole(
        "adapter/adapter_model.safetensors"
    )
    shares = record.plan["padding"]
    assert 0 <= shares["packed"] < shares["unpacked"] < 1
    assert "Rows were packed" in whole("report.html").decode()
    recorded = json.loads(whole("run.json"))
    assert recorded["plan"]["padding"] == shares
    # the very rows of every step are those of the run that is not packed
    train(path, overrides={"data.packing": False}, output=tmp_path / "plain")
    traces = [_trace(tmp_path / name) for name in ("whole", "plain")]
    assert [line["batch"] for line in traces[0]] == [line["batch"] for line in traces[1]]
    assert [line["tokens"] for line in traces[0]] == [line["tokens"] for line in traces[1]]


def _trace(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == "train"]
