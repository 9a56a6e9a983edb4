from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftcli.errors import CheckpointError, Interrupted
from peftcli.training.config import CheckpointConfig
from peftcli.training.loop import fit
from peftcli.training.signals import StopRequest

MakeTiny = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("quick_disk")

STEPS = 12
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw dropout evaluation": {"dropout": 0.3, "evaluate_every": 3},
    "adamw accumulation 8x1": {"dropout": 0.3, "micro_batch_size": 1},
    "adamw accumulation 1x8": {"dropout": 0.3, "micro_batch_size": 8, "scheduler": "wsd"},
    "adamw checkpointing": {"dropout": 0.3, "gradient_checkpointing": True},
    "sgd": {"optimizer": "sgd"},
    "sgd momentum 3": {"optimizer": {"type": "sgd", "momentum": 0.9}, "micro_batch_size": 3},
    "adafactor evaluation": {"optimizer": "adafactor", "evaluate_every": 4},
    "lion": {"optimizer": "lion", "dropout": 0.1, "scheduler": "cosine_with_restarts"},
    "muon": {"optimizer": "muon", "dropout": 0.1, "weight_decay": 0.1},
    "muon evaluation": {"optimizer": "muon", "evaluate_every": 2, "micro_batch_size": 8},
    "early stopping": {"evaluate_every": 2, "learning_rate": 0.1, "early_stopping": {"patience": 4}},
    "skip": {"on_nonfinite": "skip", "scheduler": "polynomial"},
}
if importlib.util.find_spec("pytorch_optimizer"):
    CONFIGURATIONS["galore"] = {"optimizer": {"type": "galore", "rank": 2, "update_proj_gap": 2}}
    CONFIGURATIONS["apollo"] = {"optimizer": {"type": "apollo", "rank": 2, "update_proj_gap": 2}}
    CONFIGURATIONS["schedule_free"] = {
        "optimizer": "schedule_free",
        "scheduler": "constant",
        "dropout": 0.1,
        "evaluate_every": 3,
    }


class StopAt(StopRequest):
    """A request that arrives while a step is being taken."""

    def __init__(self, tiny: Any, step: int, number: int = 15) -> None:
        super().__init__()
        inner = tiny.setup.emit

        def emit(event: str, at: int, **facts: Any) -> None:
            inner(event, at, **facts)
            if event == "train" and at == step:
                self.signal_number = number

        tiny.setup.emit = emit
        tiny.setup.stop = self


def stop_at(tiny: Any, step: int) -> Interrupted:
    StopAt(tiny, step)
    with pytest.raises(Interrupted) as caught:
        fit(tiny.setup)
    return caught.value


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_resumed_equals_uninterrupted(make_tiny: MakeTiny, tmp_path: Path, name: str) -> None:
    require_exact_resume(make_tiny, tmp_path, {"steps": STEPS, **CONFIGURATIONS[name]})


@pytest.mark.slow
@pytest.mark.parametrize("gradient_checkpointing", [False, 2])
@pytest.mark.parametrize("evaluate_every", [None, 5])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor", "lion", "muon", {"type": "sgd", "momentum": 0.9}])
def test_every_combination(
    make_tiny: MakeTiny,
    tmp_path: Path,
    optimizer: Any,
    micro_batch_size: int,
    evaluate_every: int | None,
    gradient_checkpointing: bool | int,
) -> None:
    options = {
        "optimizer": optimizer,
        "micro_batch_size": micro_batch_size,
        "evaluate_every": evaluate_every,
        "gradient_checkpointing": gradient_checkpointing,
    }
    require_exact_resume(make_tiny, tmp_path, {"steps": STEPS, "dropout": 0.2, **options})


def require_exact_resume(make_tiny: MakeTiny, tmp_path: Path, options: dict[str, Any]) -> None:
    """Three stop points: losses hex-equal, adapters byte-equal, everything that is reported equal."""
    whole = make_tiny(tmp_path / "whole", **options)
    expected = fit(whole.setup)
    for stop in (1, 6, 11):
        folder = tmp_path / f"stopped-{stop}"
        stop_at(make_tiny(folder, **options), stop)
        resumed = make_tiny(folder, resume=True, **options)
        result = fit(resumed.setup)
        assert result.resumed_from == stop
        assert [loss.hex() for loss in result.losses] == [loss.hex() for loss in expected.losses]
        assert resumed.weights() == whole.weights()
        assert result.evaluations == expected.evaluations
        assert (result.tokens, result.trained_tokens) == (expected.tokens, expected.trained_tokens)
        assert (result.chosen_step, result.stopped_early) == (expected.chosen_step, expected.stopped_early)


def test_interrupted_twice_and_again_after_the_end(make_tiny: MakeTiny, tmp_path: Path) -> None:
    options = {"steps": STEPS, "dropout": 0.2, "evaluate_every": 3}
    whole = make_tiny(tmp_path / "whole", **options)
    expected = fit(whole.setup)
    folder = tmp_path / "stopped"
    stop_at(make_tiny(folder, **options), 3)
    stop_at(make_tiny(folder, resume=True, **options), 7)
    for _ in range(2):
        last = make_tiny(folder, resume=True, **options)
        result = fit(last.setup)
        assert result.losses == expected.losses
        assert last.weights() == whole.weights()
    assert last.events.of("train") == []


def test_the_interruption_says_what_to_do(make_tiny: MakeTiny, tmp_path: Path) -> None:
    error = stop_at(make_tiny(tmp_path), 5)
    assert "SIGTERM after step 5 of 12" in str(error)
    assert "peft resume" in str(error)
    assert "step-00000005" in str(error)


def test_an_interrupted_evaluation_is_repeated(make_tiny: MakeTiny, tmp_path: Path) -> None:
    options = {"steps": STEPS, "dropout": 0.2, "evaluate_every": 3}
    whole = make_tiny(tmp_path / "whole", **options)
    expected = fit(whole.setup)
    stopped = make_tiny(tmp_path / "stopped", **options)
    request = stopped.setup.stop = StopRequest()
    inner = stopped.setup.evaluate

    def evaluate(step: int) -> dict[str, float]:
        if step == 6:
            request.receive(15, None)
        metrics: dict[str, float] = inner(step)
        return metrics

    stopped.setup.evaluate = evaluate
    with pytest.raises(Interrupted):
        fit(stopped.setup)
    assert 6 not in [line["step"] for line in stopped.events.of("eval")]
    resumed = make_tiny(tmp_path / "stopped", resume=True, **options)
    result = fit(resumed.setup)
    assert result.evaluations == expected.evaluations
    assert resumed.weights() == whole.weights()


def test_a_first_step_that_never_came_starts_anew(make_tiny: MakeTiny, tmp_path: Path) -> None:
    whole = make_tiny(tmp_path / "whole")
    fit(whole.setup)
    resumed = make_tiny(tmp_path / "nothing", resume=True)
    assert fit(resumed.setup).resumed_from is None
    assert resumed.weights() == whole.weights()


def test_the_best_adapter_survives(make_tiny: MakeTiny, tmp_path: Path) -> None:
    options = {"steps": 30, "evaluate_every": 3, "learning_rate": 0.1}
    whole = make_tiny(tmp_path / "whole", **options)
    expected = fit(whole.setup)
    assert expected.chosen_step < 28
    stop_at(make_tiny(tmp_path / "stopped", **options), 28)
    resumed = make_tiny(tmp_path / "stopped", resume=True, **options)
    assert fit(resumed.setup).chosen_step == expected.chosen_step
    assert resumed.weights() == whole.weights()


def test_retention_keeps_the_newest_and_the_best(make_tiny: MakeTiny, tmp_path: Path) -> None:
    checkpoint = CheckpointConfig(every=3)
    stranger = tmp_path / "step-00000001"
    stranger.mkdir()
    (stranger / "notes.txt").write_text("not ours")
    tiny = make_tiny(tmp_path, steps=30, evaluate_every=3, learning_rate=0.1, checkpoint=checkpoint, keep=2)
    best = fit(tiny.setup).chosen_step
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted({stranger.name, f"step-{best:08d}", "step-00000027", "step-00000030"})


def test_another_recipe_is_refused_with_the_difference(make_tiny: MakeTiny, tmp_path: Path) -> None:
    stop_at(make_tiny(tmp_path, identity={"recipe": "abc", "data": [1, 2]}), 5)
    with pytest.raises(CheckpointError, match=r"recipe was 'abc' and is now 'abd'"):
        fit(make_tiny(tmp_path, resume=True, identity={"recipe": "abd", "data": [1, 2]}).setup)


def test_another_optimizer_is_refused(make_tiny: MakeTiny, tmp_path: Path) -> None:
    stop_at(make_tiny(tmp_path), 5)
    with pytest.raises(CheckpointError, match="another optimizer"):
        fit(make_tiny(tmp_path, resume=True, optimizer="lion").setup)


def test_another_shape_is_refused(make_tiny: MakeTiny, tmp_path: Path) -> None:
    stop_at(make_tiny(tmp_path), 5)
    other = make_tiny(tmp_path, resume=True)
    state = other.adapter.state

    def renamed() -> dict[str, Any]:
        return {name.replace("bias", "offset"): tensor for name, tensor in state().items()}

    other.adapter.state = renamed
    with pytest.raises(CheckpointError, match="another adapter: bias"):
        fit(other.setup)


def test_a_longer_run_may_be_resumed(make_tiny: MakeTiny, tmp_path: Path) -> None:
    options = {"scheduler": "constant", "warmup_steps": 0}
    whole = make_tiny(tmp_path / "whole", steps=20, **options)
    fit(whole.setup)
    fit(make_tiny(tmp_path / "short", steps=12, **options).setup)
    longer = make_tiny(tmp_path / "short", steps=20, resume=True, **options)
    assert fit(longer.setup).resumed_from == 12
    assert longer.weights() == whole.weights()


def test_the_micro_batch_size_of_the_first_start_is_kept(make_tiny: MakeTiny, tmp_path: Path) -> None:
    stop_at(make_tiny(tmp_path, micro_batch_size=4), 5)
    assert fit(make_tiny(tmp_path, micro_batch_size=8, resume=True).setup).micro_batch_size == 4


def test_a_save_can_be_asked_for(make_tiny: MakeTiny, tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path, checkpoint=CheckpointConfig(every=None), keep=5)
    request = tiny.setup.stop = StopRequest()
    inner = tiny.setup.emit

    def emit(event: str, step: int, **facts: Any) -> None:
        inner(event, step, **facts)
        request.save_requested |= event == "train" and step == 5

    tiny.setup.emit = emit
    fit(tiny.setup)
    assert [line["step"] for line in tiny.events.of("checkpoint")] == [0, 5, 12]


def test_retention_that_a_kill_left_undone_is_done_on_resume(make_tiny: MakeTiny, tmp_path: Path) -> None:
    checkpoint = CheckpointConfig(every=3)
    fit(make_tiny(tmp_path, checkpoint=checkpoint, keep=4).setup)
    assert len(list(tmp_path.iterdir())) == 4
    damaged = tmp_path / "step-00000012" / "state.json"
    good = damaged.read_bytes()
    damaged.write_bytes(b"")
    fit(make_tiny(tmp_path, checkpoint=checkpoint, keep=1, steps=9, resume=True).setup)
    assert len(list(tmp_path.iterdir())) == 4, "while one is damaged, none is given up"
    damaged.write_bytes(good)
    fit(make_tiny(tmp_path, checkpoint=checkpoint, keep=1, resume=True).setup)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000012"]


def with_accuracy(tiny: Any, accuracies: dict[int, float]) -> Any:
    """The evaluation reports an accuracy too, as given by step."""
    inner = tiny.setup.evaluate
    tiny.setup.evaluate = lambda step: {**inner(step), "eval_accuracy": accuracies.get(step, 0.5)}
    tiny.setup.higher_is_better = lambda metric: metric == "eval_accuracy"
    return tiny


def test_another_metric_for_the_best_starts_a_new_best(make_tiny: MakeTiny, tmp_path: Path) -> None:
    """A loss of 3 must not stay as an accuracy that no later one can pass."""
    accuracies = {6: 0.2, 9: 0.9, 12: 0.3}
    by_loss = CheckpointConfig(every=3, best="eval_loss")
    stop_at(with_accuracy(make_tiny(tmp_path, evaluate_every=3, checkpoint=by_loss), accuracies), 6)
    by_accuracy = CheckpointConfig(every=3, best="eval_accuracy")
    tiny = with_accuracy(make_tiny(tmp_path, evaluate_every=3, checkpoint=by_accuracy, resume=True), accuracies)
    result = fit(tiny.setup)
    assert result.chosen_step == 9
    assert any("checkpoint.best is now eval_accuracy" in warning for warning in result.warnings)


def test_no_best_any_more_leaves_the_last_adapter(make_tiny: MakeTiny, tmp_path: Path) -> None:
    rising = CheckpointConfig(every=3, best="eval_loss")
    stop_at(make_tiny(tmp_path, evaluate_every=3, checkpoint=rising), 6)
    tiny = make_tiny(tmp_path, evaluate_every=3, checkpoint=CheckpointConfig(every=3, best=None), resume=True)
    assert fit(tiny.setup).chosen_step == 12


def test_what_a_longer_run_does_to_the_schedule_is_told(make_tiny: MakeTiny, tmp_path: Path) -> None:
    options = {"scheduler": "linear", "warmup_steps": 0}
    fit(make_tiny(tmp_path, steps=12, **options).setup)
    longer = make_tiny(tmp_path, steps=24, resume=True, **options)
    result = fit(longer.setup)
    told = [warning for warning in result.warnings if "24 steps instead of 12" in warning]
    assert told == [
        "the run takes 24 steps instead of 12, and the schedule with it: the rate of step 13 is 0.015, the last was 0.0025"
    ]
    assert longer.events.of("another_length")[0]["planned"] == 12
    same = make_tiny(tmp_path, steps=24, resume=True, **options)
    assert sum("instead of" in warning for warning in fit(same.setup).warnings) == 1
