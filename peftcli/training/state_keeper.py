"""The live state of a run and its way to disk and back: adapter, optimizer, fp16 scaler, numbers, best adapter."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peftcli.errors import CheckpointError, NumericalError
from peftcli.training.agreement import require_alike, require_same_checkpoint
from peftcli.training.checkpoint import Snapshot
from peftcli.training.config import LengthenedConfig
from peftcli.training.guards import non_finite_tensors
from peftcli.training.optimizer_state import flatten, parameter_names, unflatten
from peftcli.training.schedules import schedule_of
from peftcli.training.setup import FitSetup
from peftcli.training.training_state import TrainingState


class Keeper:
    """Owns what a checkpoint holds. `optimizer` is the torch optimizer inside Accelerate's."""

    def __init__(self, setup: FitSetup, optimizer: torch.optim.Optimizer) -> None:
        self.setup = setup
        self.optimizer = optimizer
        self.names = parameter_names(optimizer, setup.adapter.trainable_parameters())
        self.state = TrainingState(micro_batch_size=setup.micro_batch_size, planned_steps=setup.total_steps)
        self.best: dict[str, Tensor] | None = None
        self.saved_step: int | None = None
        self._started = time.perf_counter()
        self._seconds_before = 0.0

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The tensors that the optimizer moves, by name."""
        return {
            # in the order of the groups, in which the optimizer has them
            self.names[id(parameter)]: parameter
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        }

    def seconds(self) -> float:
        """Since training began, without the time between an interruption and its resumption."""
        return self._seconds_before + time.perf_counter() - self._started

    def adapter_tensors(self) -> dict[str, Tensor]:
        """A copy of the adapter's state on the CPU."""
        return {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in self.setup.adapter.state().items()
        }

    def keep_best(self) -> None:
        """Remembers the adapter as the best so far, in memory; the next checkpoint writes it."""
        self.best = self.adapter_tensors()

    def save(self) -> None:
        """Commits a checkpoint of the current step, once; does nothing without a store."""
        store = self.setup.store
        # once: a signal, an evaluation and the end may all ask for the same step
        if store is None or self.saved_step == self.state.step:
            return
        self.state.seconds = self.seconds()
        require_alike(self.setup.world, self.setup.adapter.state(), self.state.step)
        path = store.save(self._snapshot()) if self.setup.world.leads else store.path(self.state.step)
        self.saved_step = self.state.step
        self.setup.emit("checkpoint", self.state.step, path=path.name, seconds=self.state.seconds)

    def save_if_finite(self) -> None:
        """Saves the step before a non-finite one, unless its own numbers are already lost."""
        # a state that is lost leaves the older checkpoint as the one to resume from
        with contextlib.suppress(NumericalError):
            self.save()

    def _snapshot(self) -> Snapshot:
        tensors, scalars = flatten(self.optimizer, self.names)
        adapter = self.adapter_tensors()
        return Snapshot(
            state=self.state,
            adapter=adapter,
            optimizer=tensors,
            scalars={"optimizer": scalars, "scaler": self._scaler_state()},
            # the best is most often the adapter of this very step: it is then not written a second time
            best=None if self._best_is(adapter) else self.best,
        )

    def _best_is(self, adapter: Mapping[str, Tensor]) -> bool:
        best = self.best
        return (
            best is not None
            and self.state.best_step == self.state.step
            and all(torch.equal(best[name], tensor) for name, tensor in adapter.items())
        )

    def _scaler_state(self) -> dict[str, Any]:
        scaler = self.setup.accelerator.scaler
        return {} if scaler is None else dict(scaler.state_dict())

    def restore(self) -> int | None:
        """Takes the newest good checkpoint; returns its step, or None where there was never one.

        Raises `CheckpointError` where none is good, or it is of another recipe or shape.
        """
        store = self.setup.store
        if store is None:
            raise CheckpointError("there is no place for checkpoints, so nothing to resume from")
        if self.setup.world.leads:
            store.clean()
        snapshot, rejected = store.newest()
        require_same_checkpoint(self.setup.world, None if snapshot is None else snapshot.state.step)
        for fault in rejected:
            self.setup.progress.say(f"warning: {fault.message}")
            self.state.warnings.append(fault.message)
            self.setup.emit("rejected_checkpoint", 0, message=fault.message)
        if snapshot is None:
            return None
        warnings = self.state.warnings
        # applying a snapshot puts its warnings in place of those that were just given
        self.apply(snapshot)
        self.state.warnings = [*self.state.warnings, *warnings]
        self._mend_log()
        self._start_another_best()
        self._tell_another_length()
        if not rejected and self.setup.world.leads:
            # a save may have ended between its commit and this; while any is damaged, no older one is given up
            store.retain(self.state)
        self.setup.emit("resume", self.state.step, checkpoint=store.path(self.state.step).name)
        return self.state.step

    def _mend_log(self) -> None:
        """What the log says of the steps after is what the checkpoint knows of them."""
        said = self.setup.mend_log(self.state)
        if said is not None:
            self.setup.progress.say(f"warning: {said}")
            self.state.warnings.append(said)
            self.setup.emit("mended_log", self.state.step, message=said)

    def _start_another_best(self) -> None:
        """Where the best is by another metric than before, what was kept counts no more: its value bounds nothing."""
        state, wanted = self.state, self.setup.checkpoint.best
        if state.best_step is None or state.best_metric in (None, wanted):
            return
        said = f"checkpoint.best is now {wanted or 'null'}: step {state.best_step}, the best by {state.best_metric}, "
        said += "is no longer kept for it"
        self.setup.progress.say(f"warning: {said}")
        state.warnings.append(said)
        state.best_step = state.best_value = state.best_metric = self.best = None
        here = state.evaluations.get(state.step, {}).get(wanted or "")
        if here is not None:
            state.best_step, state.best_value, state.best_metric = state.step, here, wanted
            self.keep_best()

    def _tell_another_length(self) -> None:
        """Where the run is longer or shorter than planned, the schedule is that of the new length: the rate may jump."""
        before, now, step = self.state.planned_steps, self.setup.total_steps, self.state.step
        self.state.planned_steps = now
        if before is None or before == now or step >= now:
            return
        lengths = self.setup.config.lengths
        # what the schedule says without the last change, and with it
        old = self._rate(min(step + 1, before), before, lengths[:-1])
        new = self._rate(step + 1, now, lengths)
        stays = bool(lengths) and lengths[-1].schedule == "constant"
        said = f"the run takes {now} steps instead of {before}, and "
        said += "the rate stays where it was" if stays else "the schedule with it"
        said += f": the rate of step {step + 1} is {new:.3g}"
        said += f", it would have been {old:.3g}" if step < before else f", the last was {old:.3g}"
        self.setup.progress.say(f"warning: {said}")
        self.state.warnings.append(said)
        self.setup.emit("another_length", step, planned=before, steps=now, message=said)

    def _rate(self, step: int, total_steps: int, lengths: Sequence[LengthenedConfig]) -> float:
        config = self.setup.config.model_copy(update={"lengthened": list(lengths)})
        return self.setup.learning_rate * schedule_of(config, total_steps)(step)

    def apply(self, snapshot: Snapshot) -> None:
        """Puts a snapshot into adapter, optimizer and scaler."""
        # before anything is written: half a restore would leave adapter and optimizer of different steps
        _require_same_tensors(self.setup.adapter.state(), snapshot.adapter)
        self.setup.adapter.load_state(snapshot.adapter)
        try:
            unflatten(self.optimizer, self.names, snapshot.optimizer, snapshot.scalars["optimizer"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint is of another optimizer: {error}") from error
        if self.setup.accelerator.scaler is not None and snapshot.scalars["scaler"]:
            self.setup.accelerator.scaler.load_state_dict(snapshot.scalars["scaler"])
        self.state = snapshot.state
        self.best = snapshot.best
        if self.best is None and self.state.best_step is not None:
            # no tensors of its own were written, so the best was the adapter of that step
            self.best = dict(snapshot.adapter)
        self.saved_step = self.state.step
        self._seconds_before, self._started = self.state.seconds, time.perf_counter()

    def roll_back(self, step: int) -> None:
        """Returns to the newest checkpoint and blocks the batch of `step`."""
        assert self.setup.store is not None, "a rollback needs checkpoints"
        # what was learned since that checkpoint stays known: the bad batch, the size that fits, the time that was spent
        blocked, micro_batch_size = [*self.state.blocked_steps, step], self.state.micro_batch_size
        seconds = self.seconds()
        snapshot, _ = self.setup.store.newest()
        require_same_checkpoint(self.setup.world, None if snapshot is None else snapshot.state.step)
        assert snapshot is not None, "a first checkpoint is written before the first step"
        self.apply(snapshot)
        # the time since goes on counting, though its steps are taken again
        self._seconds_before = seconds
        self.state.blocked_steps = blocked
        # never larger than what has fitted: the next pass would run out of memory again
        self.state.micro_batch_size = min(micro_batch_size, self.state.micro_batch_size)

    def choose(self) -> int:
        """Leaves the adapter in the best state, or the last; returns its step.

        Raises `NumericalError` if that state is not finite.
        """
        step = self.state.step
        if self.best is not None and self.state.best_step is not None:
            self.setup.adapter.load_state(self.best)
            step = self.state.best_step
        if bad := non_finite_tensors(self.setup.adapter.state()):
            raise NumericalError(f"the adapter is not finite: {', '.join(bad[:5])}", fix="lower the learning rate")
        return step


def _require_same_tensors(live: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in live.items()}
    found = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if wanted == found:
        return
    names = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    differences = "; ".join(f"{name}: {found.get(name)} instead of {wanted.get(name)}" for name in names[:5])
    raise CheckpointError(f"the checkpoint is of another adapter: {differences}")
