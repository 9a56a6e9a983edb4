"""A whole run whose numbers break, or whose memory runs out, at a chosen step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from whole_run import RECIPE, Child, in_a_fork, losses

from peftcli import folders
from peftcli.tasks.causal_lm import CausalLm
from peftcli.training import stepper
from peftcli.training.checkpoint import CheckpointStore

pytestmark = pytest.mark.usefixtures("warm")
STEPS = 5
SMALL = RECIPE.replace("METHOD", "{type: lora, r: 2, target_modules: [q_proj]}").replace("max_steps: 3", "max_steps: 5")


def write(folder: Path, text: str = SMALL) -> Path:
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def nan_at(step: int) -> Callable[[], None]:
    """The loss of that step is NaN; forward passes of other steps are left alone."""

    def arm() -> None:
        take, loss = stepper.Stepper.train_step, CausalLm.loss
        now = [0]

        def taking(self: stepper.Stepper) -> None:
            now[0] = self.keeper.state.step + 1
            take(self)
            now[0] = 0

        def poisoned(self: CausalLm, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> object:
            found = loss(self, model, batch)
            return type(found)(found.total * float("nan"), found.weight) if now[0] == step else found

        stepper.Stepper.train_step, CausalLm.loss = taking, poisoned  # type: ignore[method-assign]

    return arm


@pytest.mark.parametrize("step", [1, 3, 5])
def test_nan_at_a_step(tmp_path: Path, step: int) -> None:
    recipe, folder = write(tmp_path), tmp_path / "run"
    arguments = ["train", str(recipe), "--output", str(folder), "--quiet"]
    code, text = Child(arguments, arm=nan_at(step)).end()
    assert code == 8, text
    assert f"the loss is nan at step {step}" in text
    kept = folder / "data" / f"batch-step-{step:08d}.jsonl"
    assert kept.name in text
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "failed"
    assert kept.name in json.dumps(record)
    assert (folder / "report.html").is_file()
    assert sorted(losses(folder)) == list(range(1, step)), "stopped within the step"

    # the kept batch is shown as training saw it
    code, text = in_a_fork(["data", str(folder / "recipe.yaml"), "--rows", "2"])
    assert code == 0, text
    assert f"{kept}: the batch of step {step}" in text
    code, text = in_a_fork(["data", str(folder / "recipe.yaml"), "--rows", "9", "--json"])
    batch = json.loads(text)["kept_batches"][0]
    assert (batch["step"], len(batch["rows"])) == (step, batch["num_rows"])
    assert all(row["trained_tokens"] > 0 for row in batch["rows"])

    # the folder is loadable, and goes on exactly once the cause is gone
    newest = max((folder / "checkpoints").glob("step-*"))
    assert newest.name == f"step-{step - 1:08d}"
    folders.verify_manifest(newest)
    assert in_a_fork(["report", str(folder)])[0] == 0
    assert in_a_fork(["resume", str(folder), "--quiet"])[0] == 0
    whole = tmp_path / "whole"
    assert in_a_fork(["train", str(recipe), "--output", str(whole), "--quiet"])[0] == 0
    assert losses(folder) == losses(whole)


def test_no_artefact_is_ever_not_finite(tmp_path: Path) -> None:
    """An adapter that breaks after its step is not saved, and the checkpoint before it is good."""
    recipe, folder = write(tmp_path), tmp_path / "run"

    def arm() -> None:
        update = stepper.Stepper._update

        def breaking(self: stepper.Stepper, step: int, *, overflowed: bool) -> None:
            update(self, step, overflowed=overflowed)
            if step == 3:
                next(iter(self.keeper.parameters.values())).data.fill_(float("nan"))

        stepper.Stepper._update = breaking  # type: ignore[method-assign]

    code, text = Child(["train", str(recipe), "--output", str(folder), "--quiet"], arm=arm).end()
    assert code == 8, text
    assert "step 3" in text
    assert max((folder / "checkpoints").glob("step-*")).name == "step-00000002"
    assert not (folder / "adapter").exists()


@pytest.mark.parametrize(("policy", "event"), [("skip", "skip"), ("rollback", "rollback")])
def test_going_on_without_the_batch(tmp_path: Path, policy: str, event: str) -> None:
    recipe, folder = (
        write(tmp_path, SMALL.replace("training: {", f"training: {{on_nonfinite: {policy}, ")),
        tmp_path / "run",
    )
    code, text = Child(["train", str(recipe), "--output", str(folder), "--quiet"], arm=nan_at(3)).end()
    assert code == 0, text
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "completed"
    assert "step 3" in json.dumps(record["warnings"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if line["event"] == event] == [3]


def test_out_of_memory(tmp_path: Path) -> None:
    """More than two rows at a time do not fit: the same batches, by halves, lead to the same losses."""
    text = SMALL.replace("micro_batch_size: 2", "micro_batch_size: 4")
    recipe, folder, whole = write(tmp_path, text), tmp_path / "run", tmp_path / "whole"
    assert in_a_fork(["train", str(recipe), "--output", str(whole), "--quiet"])[0] == 0

    def arm() -> None:
        loss = CausalLm.loss

        def limited(self: CausalLm, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> object:
            if model.training and len(batch["input_ids"]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loss(self, model, batch)

        CausalLm.loss = limited  # type: ignore[method-assign]

    code, said = Child(["train", str(recipe), "--output", str(folder), "--quiet"], arm=arm).end()
    assert code == 0, said
    expected, found = losses(whole), losses(folder)
    assert sorted(found) == sorted(expected) == list(range(1, STEPS + 1))
    for step, value in found.items():
        assert float.fromhex(value) == pytest.approx(float.fromhex(expected[step]), rel=1e-6)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert any("out of memory with micro_batch_size 4; going on with 2" in line for line in record["warnings"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines].count("out_of_memory") == 1
    snapshot = CheckpointStore(folder / "checkpoints", "").candidates()[0] / "state.json"
    assert json.loads(snapshot.read_text(encoding="utf-8"))["training"]["micro_batch_size"] == 2
