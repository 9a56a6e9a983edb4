"""What the training loop is handed of a run: its functions, its numbers, and what it tells back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftcli.adapters.surgery import adapter_of, disabled
from peftcli.data.store import TokenStore
from peftcli.data.stream_order import StreamOrder
from peftcli.evaluation.registry import metric_facts
from peftcli.planning.resolved import Resolved
from peftcli.runs.assembly import Assembly, cursors_in
from peftcli.runs.folder import keep_batch
from peftcli.runs.identity import checkpoint_store
from peftcli.runs.packing import pack_of
from peftcli.training.config import TrainingConfig
from peftcli.training.events import EventLog
from peftcli.training.interfaces import parts_alone
from peftcli.training.seeding import stream_seed
from peftcli.training.setup import FitSetup
from peftcli.training.trackers import both


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
    return [lambda folder: order.keep_cursors(cursors_in(folder))] if isinstance(order, StreamOrder) else []


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
