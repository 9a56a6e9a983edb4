"""Base model, data, task and adapter put together for one run, and the functions that the training loop is handed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from peftcli.adapters.base import InitContext
from peftcli.adapters.identity import base_fingerprint
from peftcli.adapters.surgery import adapter_of, disabled
from peftcli.data.store import EncodedRow, TokenStore
from peftcli.data.stream_order import StreamOrder
from peftcli.errors import DeviceError, ModelError, RecipeError
from peftcli.evaluation.evaluate import Evaluation, evaluate
from peftcli.evaluation.registry import metric_facts
from peftcli.models.added_tokens import give_rows
from peftcli.models.device import peak_memory_bytes, start_peak_memory
from peftcli.models.fingerprint import Fingerprint
from peftcli.models.heads import settle_padding
from peftcli.models.load import DTYPES, load_model
from peftcli.models.modes import evaluating
from peftcli.models.stored import original_weight
from peftcli.models.structure import structure
from peftcli.planning.machine import processes_here
from peftcli.planning.plan import Prepared
from peftcli.planning.resolved import Resolved
from peftcli.recipe import flat_recipe
from peftcli.runs.folder import keep_batch, resolved_values
from peftcli.runs.packing import pack_of, require_rows_apart
from peftcli.tasks.base import Task
from peftcli.training.acceleration import build_accelerator
from peftcli.training.agreement import tensors_digest
from peftcli.training.checkpoint import CHECKPOINTS, CheckpointStore
from peftcli.training.config import TrainingConfig
from peftcli.training.events import EventLog
from peftcli.training.interfaces import parts_alone
from peftcli.training.progress import TrainingProgress, build_progress
from peftcli.training.seeding import stream_seed
from peftcli.training.setup import FitResult, FitSetup
from peftcli.training.trackers import Trackers, both, require_packages
from peftcli.training.world import ALONE, World

INIT_BATCHES = 8
FREE_KEYS = (
    "name", "output", "tracking", "expect", "generation.", "evaluation.", "checkpoint.", "training.epochs",
    "training.max_steps", "training.lengthened", "training.processes", "training.sharding", "threads", "extends",
    "data.checks",
)  # fmt: skip
"""Recipe keys that a resumed run may change: logging, length, place."""


@dataclass
class Assembly:
    """One run's parts, on the device, with the scores that evaluation leaves behind."""

    prepared: Prepared
    folder: Path
    model: nn.Module
    task: Task
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    blocks: tuple[nn.Module, ...]
    model_memory_bytes: int
    base_fingerprint: Fingerprint
    quiet: bool
    progress: TrainingProgress
    world: World = ALONE
    """The processes of the run; only the leading one writes."""
    base_bytes: tuple[int, int] | None = None
    """Of a base that is spread: bytes of the whole, and of what this process holds of it."""
    trackers: Trackers | None = None
    scores: dict[int, Evaluation] = field(default_factory=dict)
    followers: list[Callable[[Path], None]] = field(default_factory=list)
    """Told when the run folder lies elsewhere."""

    def move(self, folder: Path) -> None:
        """The run folder lies at `folder` now, with everything that is in it."""
        self.folder = folder
        for follow in self.followers:
            follow(folder)

    def start_trackers(self) -> None:
        """Starts those that the recipe names; they write into the run folder as it lies now."""
        self.trackers = _trackers(self.prepared, self.accelerator, self.folder)

    def emit(self, event: str, step: int, **facts: Any) -> None:
        """Tells an event to the trackers, once there are any."""
        if self.trackers is not None:
            self.trackers(event, step, **facts)

    @property
    def pad_token_id(self) -> int:
        """What padding is filled with; a tokenizer without one pads with 0, which is masked."""
        return int(self.tokenizer.pad_token_id or 0)

    @property
    def validation(self) -> TokenStore | None:
        """The validation rows; None where there are none to score."""
        found = self.prepared.data.validation
        return found if found is not None and len(found) else None

    def collate(self, rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """Encoded rows as one batch of the task, on the CPU."""
        return self.task.collate(rows, pad_token_id=self.pad_token_id)

    def rows(self, indices: Iterable[int]) -> list[EncodedRow]:
        """Training rows by their numbers in the run's order."""
        order = self.prepared.order
        if isinstance(order, StreamOrder):
            return order.rows([int(index) for index in indices])
        return [self.prepared.data.train[int(index)] for index in indices]

    def evaluate(self, *, with_samples: bool) -> Evaluation | None:
        """The model as it stands on the validation rows; None without any."""
        if self.validation is None:
            return None
        recipe = self.prepared.loaded.recipe
        return evaluate(
            self.model,
            self.task,
            self.validation,
            self.tokenizer,
            config=recipe.evaluation,
            generation=recipe.generation,
            pad_token_id=self.pad_token_id,
            seed=generation_seed(recipe.seed),
            chat=self.prepared.data.facts.holds_chats,
            with_samples=with_samples,
            progress=self.progress.evaluating,
            sharing=self.world,
        )


def assemble(prepared: Prepared, folder: Path, *, quiet: bool, track: bool = True, world: World = ALONE) -> Assembly:
    """Loads the base's weights and makes everything ready for `attach`. `track`: start the recipe's trackers now."""
    _require_processes(prepared, world)
    resolved = prepared.plan.resolved
    # before the weights, which may take minutes to read
    require_packages(prepared.loaded.recipe.tracking)
    if isinstance(prepared.order, StreamOrder) and world.leads:
        prepared.order.keep_cursors(_cursors_in(folder))
    accelerator = build_accelerator(device=resolved.device, precision=resolved.precision)
    # from here on, so that the peak holds the base and nothing that planning has freed again
    start_peak_memory(resolved.device)
    attention = prepared.loaded.recipe.model.attention
    model = load_model(
        prepared.source,
        auto_class=prepared.task.auto_class,
        dtype=DTYPES[resolved.dtype],
        attention=None if attention == "auto" else attention,
        # one that will be spread may not fit a device as a whole
        device=resolved.device if prepared.loaded.recipe.training.sharding == "none" else "cpu",
        quantization=prepared.loaded.recipe.model.quantization,
        head=prepared.head,
    )
    if prepared.added is not None:
        give_rows(model, prepared.added)
    if prepared.head is not None:
        settle_padding(model, prepared.tokenizer)
    found = Assembly(
        prepared=prepared,
        folder=folder,
        model=model,
        task=prepared.task,
        tokenizer=prepared.tokenizer,
        accelerator=accelerator,
        blocks=tuple(structure(model).blocks.values()),
        model_memory_bytes=peak_memory_bytes(resolved.device),
        base_fingerprint=base_fingerprint(model),
        quiet=quiet,
        progress=build_progress(quiet=quiet or not world.leads),
        world=world,
    )
    if track and world.leads:
        found.start_trackers()
    return found


def _require_processes(prepared: Prepared, world: World) -> None:
    recipe, device = prepared.loaded.recipe, prepared.plan.resolved.device
    wanted, where = recipe.training.processes, prepared.loaded.origin("training.processes")
    if wanted != world.size:
        raise RecipeError(
            f"training.processes is {wanted}, and the run has {world.size}",
            where=where,
            fix=f"set training.processes: {world.size}",
        )
    here = processes_here(recipe)
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device, here)
    if here > there:
        raise DeviceError(
            f"{here} processes on this machine need a device each, and it has {there} ({device})",
            where=where,
            fix=f"set training.processes: {there}, or device: cpu",
        )


def require_same_start(assembly: Assembly) -> None:
    """Raises where the processes of a run do not begin alike: other weights, rows, packages or adapters."""
    facts = assembly.prepared.data.facts
    mine = {
        "the base's weights": assembly.base_fingerprint.exact,
        "the rows": facts.train.stream_sha256,
        "the order of rows": facts.train.order_sha256,
        "the release of torch": torch.__version__,
        "the adapter": tensors_digest(adapter_of(assembly.model).state()),
    }
    heard = assembly.world.meet("start", mine)
    for what in mine:
        others = [str(rank + 1) for rank, each in enumerate(heard) if each[what] != heard[0][what]]
        if others:
            raise ModelError(
                f"the processes do not begin alike: {what} in process {', '.join(others)} and in process 1 differ",
                fix="every machine needs the same base, data and packages",
            )


def require_fit_base(assembly: Assembly) -> None:
    """Raises `ModelError` where the base cannot do the task, whatever it would learn: asked on the longest row."""
    recipe = assembly.prepared.loaded.recipe
    store, micro = assembly.prepared.data.train, assembly.prepared.plan.resolved.micro_batch_size
    pads = micro > 1 or (assembly.validation is not None and recipe.evaluation.batch_size > 1)
    with evaluating(assembly.model):
        assembly.task.require_fit(
            assembly.model,
            [store[row] for row in _asked_rows(store)],
            pad_token_id=assembly.pad_token_id,
            pads=pads,
        )
    require_rows_apart(assembly.prepared, assembly.task, assembly.model)


def _trackers(prepared: Prepared, accelerator: Accelerator, folder: Path) -> Trackers | None:
    names = prepared.loaded.recipe.tracking
    if not names:
        return None
    recipe = flat_recipe(prepared.loaded.recipe) | resolved_values(prepared.plan.resolved)
    return Trackers(accelerator, names, run=prepared.loaded.name, folder=folder / "tracking", recipe=recipe)


def generation_seed(seed: int) -> int:
    """Of the draws of a run's evaluations, so that `seeds: n` varies them too."""
    return stream_seed(seed, "generation")


def init_context(assembly: Assembly) -> InitContext:
    """What a method may start from: a generator, the tokenizer, the first training batches and their loss."""

    def batches() -> Iterator[dict[str, Tensor]]:
        order = assembly.prepared.order
        for index in range(min(INIT_BATCHES, order.steps_per_epoch)):
            batch = assembly.collate(assembly.rows(order.batch(0, index)))
            yield {name: tensor.to(next(assembly.model.parameters()).device) for name, tensor in batch.items()}

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        found = assembly.task.loss(model, batch)
        # a mean, so that a start from gradients does not depend on how many tokens the first batches have
        return found.total / found.weight

    generator = torch.Generator().manual_seed(stream_seed(assembly.prepared.loaded.recipe.seed, "init"))
    return InitContext(
        generator,
        tokenizer=assembly.tokenizer,
        batches=batches,
        loss=loss,
        original=lambda path, transposed: original_weight(assembly.prepared.source, path, transposed),
    )


def run_identity(assembly: Assembly) -> dict[str, Any]:
    """What must be equal to resume: every recipe key that steers the numbers, the data, the base."""
    flat = flat_recipe(assembly.prepared.loaded.recipe) | resolved_values(assembly.prepared.plan.resolved)
    steering = {key: value for key, value in flat.items() if not key.startswith(FREE_KEYS)}
    facts = assembly.prepared.data.facts
    return {**steering, "data tokens": facts.train.stream_sha256, "data order": facts.train.order_sha256,
            "base weights": assembly.base_fingerprint.exact, **_start_identity(assembly)}  # fmt: skip


def _start_identity(assembly: Assembly) -> dict[str, Any]:
    start = assembly.prepared.start
    return {} if start is None else {"files of model.init_adapter": start.hashes}


def checkpoint_store(assembly: Assembly) -> CheckpointStore:
    """Where the run's checkpoints lie, and what a checkpoint must agree with."""
    identity = run_identity(assembly)
    keep = assembly.prepared.loaded.recipe.checkpoint.keep
    return CheckpointStore(assembly.folder / CHECKPOINTS, _run_id(identity), keep=keep, identity=identity)


def fit_setup(assembly: Assembly, *, resuming: bool, has_begun_well: Callable[[], None] = lambda: None) -> FitSetup:
    """Everything that the loop is handed."""
    recipe, resolved = assembly.prepared.loaded.recipe, assembly.prepared.plan.resolved
    adapter = adapter_of(assembly.model)
    store = checkpoint_store(assembly)
    told: dict[str, Any] = {}
    assembly.followers = [store.follow]
    if assembly.world.leads:
        log = EventLog(assembly.folder / "metrics.jsonl")
        assembly.followers += [log.follow, *_stream_followers(assembly)]
        told = {
            "emit": both(log, assembly.emit),
            "mend_log": log.mend,
            "keep_batch": lambda step, indices, rows: keep_batch(assembly.folder, step, indices, rows),
        }
    return FitSetup(
        **told,
        world=assembly.world,
        model=assembly.model,
        adapter=adapter,
        order=assembly.prepared.order,
        get_rows=assembly.rows,
        collate=assembly.collate,
        pack=pack_of(assembly.prepared, assembly.task, pad_token_id=assembly.pad_token_id),
        whole_batch=assembly.task.whole_batch if assembly.task.reads_whole_batches else parts_alone,
        share=assembly.task.share if assembly.task.compares_rows else None,
        compute_loss=assembly.task.loss,
        accelerator=assembly.accelerator,
        config=settled_training(recipe.training, resolved),
        total_steps=resolved.steps,
        learning_rate=resolved.learning_rate,
        micro_batch_size=resolved.micro_batch_size,
        seed=stream_seed(recipe.seed, "forward"),
        checkpoint=recipe.checkpoint,
        store=store,
        resume=resuming,
        evaluate=None if assembly.validation is None else _evaluator(assembly),
        evaluate_every=recipe.evaluation.every,
        has_begun_well=has_begun_well,
        progress=assembly.progress,
        blocks=assembly.blocks,
        probe_rows=_longest_rows(assembly.prepared.data.train, resolved.micro_batch_size),
        may_stay_idle=adapter.gradient_exempt(),
        changes_logits=lambda batch: changes_logits(assembly, batch),
        weigh=assembly.task.weigh,
        targets_in=assembly.task.targets_in,
        kernels=resolved.kernels,
        higher_is_better=lambda metric: metric_facts(metric).better == "higher",
    )


def beginning_of(setup: FitSetup, steps: int) -> FitSetup:
    """The same for the first steps alone: on the schedule of the whole run, and without evaluations."""
    # early stopping asks for scores, and none are taken
    config = setup.config.model_copy(update={"early_stopping": None})
    return replace(setup, config=config, last_step=steps, evaluate=None)


def settled_training(config: TrainingConfig, resolved: Resolved) -> TrainingConfig:
    """The section with what the plan has chosen in the place of `auto` where the loop reads it."""
    if resolved.gradient_checkpointing is None:
        return config
    return config.model_copy(update={"gradient_checkpointing": resolved.gradient_checkpointing})


def _stream_followers(assembly: Assembly) -> list[Callable[[Path], None]]:
    order = assembly.prepared.order
    return [lambda folder: order.keep_cursors(_cursors_in(folder))] if isinstance(order, StreamOrder) else []


def _cursors_in(folder: Path) -> Path:
    return folder / "data" / "stream.jsonl"


def _run_id(identity: dict[str, Any]) -> str:
    return hashlib.sha256(repr(sorted(identity.items(), key=str)).encode()).hexdigest()[:16]


def _asked_rows(store: TokenStore) -> list[int]:
    """The longest row of a store and the shortest."""
    return [int(np.argmax(store.lengths)), int(np.argmin(store.lengths))]


def _longest_rows(store: TokenStore, count: int) -> list[int]:
    return [int(index) for index in np.argsort(-np.asarray(store.lengths), kind="stable")[:count]]


def _evaluator(assembly: Assembly) -> Callable[[int], dict[str, float]]:
    """Evaluation by step, for the loop; step 0 is the base, or the adapter that training goes on from. Whole scores are
    kept for the record."""

    def at(step: int) -> dict[str, float]:
        if step == 0 and assembly.prepared.start is not None:
            found = assembly.evaluate(with_samples=False)
        elif step == 0:
            with disabled(assembly.model):
                found = assembly.evaluate(with_samples=True)
        else:
            found = assembly.evaluate(with_samples=step == assembly.prepared.plan.resolved.steps)
        assert found is not None, "called only where there are validation rows"
        assembly.scores[step] = found
        return dict(found.metrics)

    return at


def changes_logits(assembly: Assembly, batch: dict[str, Tensor]) -> bool:
    """Whether the adapter has any effect on a batch."""
    with torch.no_grad():
        tuned = assembly.task.logits(assembly.model, batch)
        with disabled(assembly.model):
            plain = assembly.task.logits(assembly.model, batch)
    return not torch.equal(tuned, plain)


@dataclass(frozen=True)
class RunScores:
    """Base and tuned model on the validation rows; None where there are none."""

    base: Evaluation | None
    tuned: Evaluation | None


def score_run(assembly: Assembly, result: FitResult) -> RunScores:
    """Scores of base and chosen adapter; what the loop has computed already is taken, the rest computed now."""
    if assembly.validation is None:
        return RunScores(None, None)
    base = assembly.scores.get(0)
    # a run that goes on from an adapter has scored that one at step 0, and not the base
    if base is None or assembly.prepared.start is not None:
        with disabled(assembly.model):
            base = assembly.evaluate(with_samples=True)
    tuned = assembly.scores.get(result.chosen_step)
    # evaluations within training write no samples, except that of the last step
    if tuned is None or result.chosen_step != assembly.prepared.plan.resolved.steps:
        tuned = assembly.evaluate(with_samples=True)
    return RunScores(base, tuned)
