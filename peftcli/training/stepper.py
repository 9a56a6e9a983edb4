"""Takes optimizer steps: rate, gradients, guards, update, and the line that goes into the log."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from peftcli.errors import MemoryLimitError, NumericalError
from peftcli.models.device import OUT_OF_MEMORY_TYPES, is_out_of_memory
from peftcli.tasks.base import Batch
from peftcli.training.acceleration import forward_precision
from peftcli.training.agreement import put_back, shared_length
from peftcli.training.batch_gradients import OptimizerBatch, Passes, accumulate, read_batch, read_rows
from peftcli.training.config import TrainingConfig
from peftcli.training.guards import (
    SCALER_SKIP_LIMIT,
    SKIP_LIMIT,
    EffectWatch,
    LivenessWatch,
    non_finite_gradients,
    spike_message,
    too_many_skips,
)
from peftcli.training.interfaces import parts_alone
from peftcli.training.out_of_memory import memory_limit, release_memory
from peftcli.training.schedules import schedule_of
from peftcli.training.seeding import (
    LENIENT,
    deterministic_kernels,
    deterministic_mode,
    draws_digest,
    refused_operation,
    refuses_determinism,
)
from peftcli.training.setup import FitSetup
from peftcli.training.state_keeper import Keeper

WARM_STEPS = 2
MAX_WARNINGS = 200


def smaller(config: TrainingConfig) -> str:
    """What makes a run need less memory, without what it does already."""
    checkpointing = "" if config.gradient_checkpointing is True else " set training.gradient_checkpointing: true,"
    return f"lower data.max_length,{checkpointing} or use a smaller base"


def smaller_parts(config: TrainingConfig) -> str:
    """The same where the rows of a pass are not halved by themselves."""
    return f"lower training.micro_batch_size; {smaller(config)}"


class Stepper:
    """Steps the optimizer. Its only state beside the keeper's is about this process: what is watched and timed."""

    def __init__(self, setup: FitSetup, keeper: Keeper, optimizer: AcceleratedOptimizer) -> None:
        self.setup = setup
        self.keeper = keeper
        self.optimizer = optimizer
        self._parameters = keeper.parameters
        # as built: the schedule's factor is always of the peak, never of the rate before
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        warmup_steps = setup.config.num_warmup_steps(setup.total_steps)
        self._schedule = schedule_of(setup.config, setup.total_steps)
        self._effect = EffectWatch(self._output_changes, warmup_steps=warmup_steps, total_steps=setup.total_steps)
        self._precision = forward_precision(setup.accelerator, setup.model)
        self._liveness = LivenessWatch(
            self._parameters, setup.may_stay_idle, still_steps=setup.config.optimizer.still_steps
        )
        self._determinism = deterministic_mode(setup.accelerator.device)
        self._steps_here = 0
        self._last: Batch | None = None
        self._ahead: tuple[int, OptimizerBatch] | None = None

    def probe(self) -> bool:
        """Tries one micro-batch of the longest rows, forward and backward; changes nothing but the micro-batch size.

        False where these rows carry no loss, so that nothing was tried.
        """
        rows = read_rows(self.setup, self.setup.probe_rows)
        # rows without a target have no loss to go backward from
        if not rows.trained_tokens:
            return False
        self._gradients(0, rows, only_first=True)
        self.optimizer.zero_grad()
        return True

    def train_step(self) -> None:
        """Takes the next step; `state.step` is then one more, unless a rollback went back."""
        state = self.keeper.state
        step = state.step + 1
        started = time.perf_counter()
        batch = self._take(step)
        if step in state.blocked_steps:
            self._skip(step, "a rollback left this batch out")
            return
        factor = self._set_rate(step)
        loss, draws, shares = self._gradients(step, batch)
        # always computed, with an infinite limit where nothing is clipped: the norm is logged and guarded in any case
        norm = self._clip()
        self._read_ahead(step + 1)
        numbers = [loss, norm, *shares.values()]
        # the one wait for the device
        loss_value, norm_value, *facts = torch.stack([number.float() for number in numbers]).tolist()
        if not self._is_usable(loss_value, norm_value):
            self._not_finite(step, batch, loss_value)
            return
        self._update(step, overflowed=not math.isfinite(norm_value))
        self._advance(step, batch, loss_value, norm_value)
        self._time(batch, time.perf_counter() - started)
        told = self._facts(dict(zip(shares, facts, strict=True)))
        self._tell(step, loss_value, norm_value, factor, **told, batch=batch.digest(), draws=draws)

    def _take(self, step: int) -> OptimizerBatch:
        if self._ahead is not None and self._ahead[0] == step:
            return self._ahead[1]
        return read_batch(self.setup, step)

    def _read_ahead(self, step: int) -> None:
        # the host reads the next rows while the device still computes; on a CPU there is nothing to overlap
        if self.setup.accelerator.device.type != "cpu" and step <= self.setup.total_steps:
            self._ahead = (step, read_batch(self.setup, step))

    def _set_rate(self, step: int) -> float:
        factor = self._schedule(step)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        return factor

    def _gradients(
        self, step: int, batch: OptimizerBatch, *, only_first: bool = False
    ) -> tuple[Tensor, str, Mapping[str, Tensor]]:
        """The loss of the batch, a digest of the random state that its last pass left, and this process's shares in the
        facts of the batch."""
        while True:
            size = self.keeper.state.micro_batch_size
            part = batch.first(size) if only_first else batch
            found, refused = self._try(step, part, size, everything=only_first)
            # after the passes and before the rest of the step, where evaluations or checks could draw as well
            draws = draws_digest(self.setup.accelerator.device)
            number = -1 if found is None else found.number
            # of all processes: what one cannot do, none does, so that all cut the next try alike
            heard = self.setup.world.meet("passes", [found is None, refused, number, draws])
            if found is not None and not any(failed for failed, *_ in heard):
                self._last = None if only_first else found.last
                return self._whole(found), max(heard, key=lambda each: each[2])[3], found.facts
            # outside of the handler, so that no traceback holds the failed step's tensors
            found = None
            refused = next((operation for _, operation, *_ in heard if operation is not None), None)
            if refused is not None and self._determinism != LENIENT:
                self._allow_other_kernels(step, refused)
            else:
                self._halve(step, min(size, len(batch.rows)))

    def _facts(self, mine: Mapping[str, float]) -> dict[str, float]:
        """The facts of the batch: the sum of what all processes have of them."""
        if self.setup.whole_batch is parts_alone:
            return dict(mine)
        found: dict[str, float] = {}
        for shares in self.setup.world.meet("facts", dict(mine)):
            for name, value in shares.items():
                found[name] = found.get(name, 0.0) + value
        return found

    def _whole(self, found: Passes) -> Tensor:
        """The loss of the batch, with its gradients in place: the sum of what all processes have."""
        if not found.owners:
            return found.loss
        trained = tuple(self.setup.adapter.trainable_parameters().values())
        whole = self.setup.world.add(
            found.shares, found.owners, length=shared_length(trained), device=found.loss.device
        )
        return put_back(whole, trained)

    def _try(self, step: int, part: OptimizerBatch, size: int, *, everything: bool) -> tuple[Passes | None, str | None]:
        """The passes of this process; None where memory ran out, or with the operation that torch refused."""
        try:
            with deterministic_kernels(self._determinism):
                found = accumulate(
                    self.setup,
                    part,
                    step=step,
                    micro_batch_size=size,
                    precision=self._precision,
                    everything=everything,
                )
                return found, None
        except OUT_OF_MEMORY_TYPES as error:
            refused = refused_operation(error) if refuses_determinism(error) else None
            if refused is None and not is_out_of_memory(error):
                raise
            if self.setup.world.in_step:
                # the others wait in the middle of a pass for this one's part of the base
                raise MemoryLimitError("out of memory in training", fix=smaller_parts(self.setup.config)) from error
            return None, refused

    def _allow_other_kernels(self, step: int, operation: str) -> None:
        """The passes are computed again, and from now on, with what kernels there are; nothing was updated yet."""
        self.optimizer.zero_grad()
        self._determinism = LENIENT
        message = f"no deterministic kernel for {operation} on this device: this run will not repeat bit for bit"
        self._warn(step, message, "nondeterministic")

    def _halve(self, step: int, size: int) -> None:
        self.optimizer.zero_grad()
        release_memory()
        # there is nothing left to halve
        if size == 1:
            raise MemoryLimitError("out of memory in training, with one row at a time", fix=smaller(self.setup.config))
        half = max(1, size // 2)
        self.keeper.state.micro_batch_size = half
        self._warn(step, f"out of memory with micro_batch_size {size}; going on with {half}", "out_of_memory")

    def _clip(self) -> Tensor:
        # an infinite limit clips nothing and still gives the norm
        limit = self.setup.config.max_grad_norm or math.inf
        norm: Tensor = self.setup.accelerator.clip_grad_norm_(list(self._parameters.values()), limit)
        return norm.to(self.setup.accelerator.device)

    def _is_usable(self, loss: float, norm: float) -> bool:
        # an fp16 gradient may overflow: the scaler then skips the update and lowers its scale
        return math.isfinite(loss) and (math.isfinite(norm) or self.setup.accelerator.scaler is not None)

    def _update(self, step: int, *, overflowed: bool) -> None:
        with memory_limit("in the optimizer's step", smaller(self.setup.config)):
            self.optimizer.step()
        # a fused optimizer skips inside its kernel, which Accelerate's own flag does not see
        if overflowed:
            self._scaler_skipped(step)
        # after this step's update, with its gradients still there
        else:
            self.keeper.state.scaler_skips_in_a_row = 0
            self._liveness.observe(last=step == self.setup.total_steps)
            self.setup.adapter.after_step(step, self.setup.first_length)
            self._effect.observe(step)
        self.optimizer.zero_grad()

    def _scaler_skipped(self, step: int) -> None:
        state = self.keeper.state
        state.scaler_skips += 1
        state.scaler_skips_in_a_row += 1
        self.setup.emit("scaler_skip", step, scale=float(self.setup.accelerator.scaler.get_scale()))
        if state.scaler_skips_in_a_row > SCALER_SKIP_LIMIT:
            raise NumericalError(
                f"fp16 gradients overflowed {state.scaler_skips_in_a_row} steps in a row, up to step {step}",
                fix="use precision: bf16 or fp32, or lower the learning rate",
            )

    def _output_changes(self) -> bool:
        check = self.setup.changes_logits
        # the first step has no batch yet, and a method without logits nothing to compare
        if check is None or self._last is None:
            return True
        device = self.setup.accelerator.device
        set_training(self.setup, False)
        with torch.no_grad(), self._precision:
            effective = check({name: tensor.to(device) for name, tensor in self._last.items()})
        set_training(self.setup, True)
        return effective

    def _advance(self, step: int, batch: OptimizerBatch, loss: float, norm: float) -> None:
        state = self.keeper.state
        state.step = step
        state.losses.append(loss)
        state.tokens += batch.tokens
        state.trained_tokens += batch.trained_tokens
        state.clipped_steps += norm > (self.setup.config.max_grad_norm or math.inf)
        if message := spike_message(state.losses):
            self._warn(step, message, "loss_spike")

    def _time(self, batch: OptimizerBatch, seconds: float) -> None:
        self._steps_here += 1
        # the first steps compile, allocate and choose kernels: a speed from them would be far too low
        if self._steps_here > WARM_STEPS:
            state = self.keeper.state
            state.timed_steps += 1
            state.timed_tokens += batch.tokens
            state.timed_seconds += seconds

    def _tell(self, step: int, loss: float, norm: float, factor: float, **facts: float | str) -> None:
        state = self.keeper.state
        line = {
            "learning_rate": self.setup.learning_rate * factor,
            "grad_norm": norm,
            "tokens": state.tokens,
            "trained_tokens": state.trained_tokens,
            "seconds": self.keeper.seconds(),
            **facts,
        }
        state.lines.append(line)
        self.setup.emit("train", step, loss=loss, **line)
        speed = state.timed_tokens / state.timed_seconds if state.timed_seconds else 0.0
        self.setup.progress.step(step, loss, speed)

    def _warn(self, step: int, message: str, event: str) -> None:
        # bounded: a run that warns at every step would grow its record and its checkpoints without end
        if len(self.keeper.state.warnings) < MAX_WARNINGS:
            self.keeper.state.warnings.append(f"step {step}: {message}")
        self.setup.emit(event, step, message=message)
        self.setup.progress.say(f"warning: step {step}: {message}")

    def _skip(self, step: int, reason: str) -> None:
        self.optimizer.zero_grad()
        state = self.keeper.state
        state.step = step
        # NaN, so that losses and steps stay in line
        state.losses.append(math.nan)
        state.lines.append(None)
        state.skipped_steps.append(step)
        self._warn(step, f"skipped: {reason}", "skip")

    def _not_finite(self, step: int, batch: OptimizerBatch, loss: float) -> None:
        reason = self._reason(loss)
        self.optimizer.zero_grad()
        kept = self.setup.keep_batch(step, batch.indices, batch.rows) if self.setup.keep_batch else None
        where = kept or f"rows {', '.join(map(str, batch.indices[:8]))}"
        state = self.keeper.state
        match self.setup.config.on_nonfinite:
            case "skip" if not too_many_skips([*state.skipped_steps, step], step):
                self._skip(step, f"{reason}; {where}")
            case "rollback" if len(state.blocked_steps) < SKIP_LIMIT and self.setup.store is not None:
                self.keeper.roll_back(step)
                message = f"{reason}; back to step {self.keeper.state.step}, this batch is left out; {where}"
                self._warn(step, message, "rollback")
            case _:
                self.keeper.save_if_finite()
                raise NumericalError(
                    f"{reason} at step {step}",
                    where=where,
                    fix=f"look at that batch{self._how_to_look()}; lower the learning rate"
                    + (", or set training.on_nonfinite: skip" if self.setup.config.on_nonfinite == "stop" else ""),
                )

    def _how_to_look(self) -> str:
        store = self.setup.store
        return "" if store is None else f" (`peft data {shlex.quote(str(store.folder.parent / 'recipe.yaml'))}`)"

    def _reason(self, loss: float) -> str:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        names = non_finite_gradients(self._parameters)
        return f"the gradient is not finite: {', '.join(names[:3])}"


def set_training(setup: FitSetup, training: bool) -> None:
    """Training or evaluation mode of the model's own modules and of the adapter."""
    setup.model.train(training)
    setup.adapter.set_training(training)
