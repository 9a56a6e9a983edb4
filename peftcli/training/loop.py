"""The training loop: `fit` reads top to bottom as a run does; what it needs is handed in by `FitSetup`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import replace

from peftcli.errors import Interrupted, ModelError, RecipeError
from peftcli.kernels import active as fast_paths
from peftcli.kernels.names import GATED_MLP
from peftcli.training.activation_checkpointing import checkpointed_blocks
from peftcli.training.compiled_blocks import compiled_blocks
from peftcli.training.embedding_noise import EmbeddingNoise, noisy_embeddings
from peftcli.training.gated_forwards import gated_blocks
from peftcli.training.interfaces import Metrics
from peftcli.training.library_optimizers_config import ScheduleFreeConfig
from peftcli.training.optimizers import build_optimizer, split_by_decay
from peftcli.training.out_of_memory import memory_limit
from peftcli.training.seeding import deterministic_kernels
from peftcli.training.selection import record_evaluation
from peftcli.training.setup import FitResult, FitSetup
from peftcli.training.signals import StopNow, StopRequest, pass_on, stop_signals
from peftcli.training.state_keeper import Keeper
from peftcli.training.stepper import Stepper, set_training
from peftcli.training.training_state import TrainingState

CLIPPED_SHARE = 0.9
CLIPPED_MINIMUM_STEPS = 20


def fit(setup: FitSetup) -> FitResult:
    """Trains the adapter in place and returns what happened; the adapter ends in the chosen state.

    Raises `NumericalError`, `MemoryLimitError`, `CheckpointError`, `StorageError`, `DataError`, and `Interrupted`
    after a signal, when everything needed to resume is on disk.
    """
    _require_effective_settings(setup)
    assert setup.config.gradient_checkpointing != "auto", "resolved by the plan"
    every_block = int(setup.config.gradient_checkpointing)
    with (
        deterministic_kernels(),
        fast_paths.using(setup.kernels),
        gated_blocks(setup.model, GATED_MLP in setup.kernels),
        # inside of the recomputation, which then calls the compiled layer twice
        compiled_blocks(setup.blocks, setup.config.compile) as compiled,
        checkpointed_blocks(setup.blocks, every_block),
        noisy_embeddings(setup.model, setup.config.neftune_noise_alpha) as noise,
        _listening(setup) as stop,
    ):
        run = _Run(setup, stop, noise)
        setup.progress.start(run.state.step, setup.total_steps)
        try:
            run.begin()
            while not run.finished:
                run.stepper.train_step()
                run.evaluate_if_due()
                run.save_if_due()
                run.obey_signals()
            result = run.finish()
        finally:
            setup.progress.stop()
    return result if compiled is None else replace(result, compiled=compiled.told())


def _require_effective_settings(setup: FitSetup) -> None:
    if setup.config.gradient_checkpointing and not setup.blocks:
        raise ModelError(
            "training.gradient_checkpointing has no effect: this model's layers were not found",
            where="training.gradient_checkpointing",
            fix="set it to false",
        )
    if setup.config.compile and not setup.blocks:
        raise ModelError(
            "training.compile has no effect: this model's layers were not found",
            where="training.compile",
            fix="set it to false",
        )
    if setup.config.early_stopping is not None and setup.evaluate is None:
        raise RecipeError(
            "training.early_stopping needs an evaluation", where="training.early_stopping", fix="add data.validation"
        )


@contextlib.contextmanager
def _listening(setup: FitSetup) -> Iterator[StopRequest]:
    if setup.stop is not None:
        yield setup.stop
        return
    with stop_signals() as stop:
        yield stop
    if stop.signal_number is not None:
        # it came when the loop had ended
        pass_on(stop.signal_number)


class _Run:
    """One run, from its first step or from a checkpoint to its end."""

    def __init__(self, setup: FitSetup, stop: StopRequest, noise: EmbeddingNoise | None) -> None:
        self.setup = setup
        self.stop = stop
        self.noise = noise
        groups = split_by_decay(
            setup.adapter.parameter_groups(setup.learning_rate, setup.config.weight_decay), setup.adapter.decays
        )
        optimizer = build_optimizer(setup.config.optimizer, groups, learning_rate=setup.learning_rate)
        # inside Accelerate's wrapper, so that an fp16 scaler can skip a step whose gradients overflowed
        # no device placement: the state is made beside its parameters, and loading it would cast it
        self.optimizer = setup.accelerator.prepare_optimizer(optimizer, device_placement=False)
        self.keeper = Keeper(setup, optimizer)
        self.stepper = Stepper(setup, self.keeper, self.optimizer)
        self.resumed_from = self.keeper.restore() if setup.resume else None

    @property
    def state(self) -> TrainingState:
        return self.keeper.state

    @property
    def finished(self) -> bool:
        last_step = self.setup.total_steps if self.setup.last_step is None else self.setup.last_step
        return self.state.step >= min(last_step, self.setup.total_steps) or self.state.stopped_early

    def begin(self) -> None:
        """Tries the longest batch and a first save before any time is spent, then evaluates the base."""
        self._train_mode()
        # the longest rows first: out of memory shows up now and not after hours
        if self.stepper.probe() and self.noise is not None:
            self.noise.require_heard()
        if self.resumed_from is None:
            # a disk that is full or read-only shows up now as well, and a rollback always has somewhere to go
            self.keeper.save()
            self.setup.has_begun_well()
        self.evaluate_if_due()
        self.obey_signals()

    def evaluate_if_due(self) -> None:
        if self.setup.evaluate is None or self.state.step in self.state.evaluations or not self._evaluation_is_due():
            return
        # on StopNow nothing is noted: the evaluation is due again after resuming
        with contextlib.suppress(StopNow), self._evaluation_mode():
            self._record(self._evaluate())

    def _evaluation_is_due(self) -> bool:
        step, every = self.state.step, self.setup.evaluate_every
        # an earlier end of the run was evaluated, and so it is when the whole run is repeated
        ends = (part.planned for part in self.setup.config.lengths if part.after == part.planned)
        return step in (0, self.setup.total_steps, *ends) or (every is not None and step % every == 0)

    def _evaluate(self) -> Metrics:
        assert self.setup.evaluate is not None, "asked for only where there is one"
        # of several processes none may leave alone: they ask each other between two batches
        leaving = (
            self.stop.interruptible()
            if self.setup.world.size == 1
            else self.setup.world.listening(lambda: self.stop.signal_number)
        )
        with memory_limit("in the evaluation", "lower evaluation.batch_size"), leaving:
            metrics = self.setup.evaluate(self.state.step)
        return {name: float(value) for name, value in metrics.items()}

    def _record(self, metrics: Metrics) -> None:
        is_best = record_evaluation(
            self.state,
            metrics,
            config=self.setup.config,
            checkpoint=self.setup.checkpoint,
            higher_is_better=self.setup.higher_is_better,
        )
        if is_best:
            self.keeper.keep_best()
        self.setup.emit("eval", self.state.step, **metrics)
        self.setup.progress.evaluated(self.state.step, metrics)
        if self.state.stopped_early:
            self.setup.emit("early_stop", self.state.step, evaluations=self.state.bad_evaluations)

    @contextlib.contextmanager
    def _evaluation_mode(self) -> Iterator[None]:
        averaging = isinstance(self.setup.config.optimizer, ScheduleFreeConfig)
        before = self.keeper.adapter_tensors() if averaging else None
        set_training(self.setup, False)
        self.optimizer.eval()
        try:
            yield
        finally:
            self._train_mode()
            if before is not None:
                # the way to the average and back rounds; an evaluation must leave no trace
                self.setup.adapter.load_state(before)

    def _train_mode(self) -> None:
        set_training(self.setup, True)
        self.optimizer.train()

    def save_if_due(self) -> None:
        every = self.setup.checkpoint.every
        # asked before anything else: of several processes each must be heard
        asked = self.setup.world.any("save", self.stop.take_save())
        if self.finished or (every is not None and self.state.step % every == 0) or asked:
            self.keeper.save()

    def obey_signals(self) -> None:
        """After a stopping signal: everything is on disk, then `Interrupted`."""
        heard = self.setup.world.meet("signal", self.stop.signal_number)
        number = next((each for each in heard if each is not None), None)
        if number is None:
            return
        self.keeper.save()
        name = signal.Signals(number).name
        self.setup.emit("interrupt", self.state.step, signal=name)
        store = self.setup.store
        saved = "a checkpoint is saved" if store is not None else "nothing was saved"
        raise Interrupted(
            f"stopped by {name} after step {self.state.step} of {self.setup.total_steps}; {saved}",
            signal_number=number,
            where=str(store.path(self.state.step)) if store is not None else None,
            fix="`peft resume` goes on from there" if store is not None else None,
        )

    def finish(self) -> FitResult:
        # an optimizer that averages puts the average in place, which is what is kept and was evaluated
        self.optimizer.eval()
        set_training(self.setup, False)
        chosen_step = self.keeper.choose()
        state = self.state
        return FitResult(
            steps=state.step,
            epochs=state.step / self.setup.order.steps_per_epoch,
            tokens=state.tokens,
            trained_tokens=state.trained_tokens,
            seconds=self.keeper.seconds(),
            tokens_per_second=state.timed_tokens / state.timed_seconds if state.timed_seconds else 0.0,
            steps_per_second=state.timed_steps / state.timed_seconds if state.timed_seconds else 0.0,
            losses=tuple(state.losses),
            lines=tuple(state.lines),
            evaluations=dict(state.evaluations),
            chosen_step=chosen_step,
            stopped_early=state.stopped_early,
            micro_batch_size=state.micro_batch_size,
            warnings=(*state.warnings, *self._clipping_warning()),
            resumed_from=self.resumed_from,
            kernels=fast_paths.told(),
            chosen_state=self.keeper.adapter_tensors(),
        )

    def _clipping_warning(self) -> list[str]:
        steps, clipped = self.state.step, self.state.clipped_steps
        if steps < CLIPPED_MINIMUM_STEPS or clipped <= CLIPPED_SHARE * steps:
            return []
        return [
            f"the gradient was clipped at {clipped} of {steps} steps; a higher max_grad_norm or lower rate may help"
        ]
