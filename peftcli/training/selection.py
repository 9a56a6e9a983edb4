"""Which step's adapter is kept, and when a run has stopped improving."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from peftcli.errors import NumericalError, RecipeError
from peftcli.training.config import CheckpointConfig, TrainingConfig
from peftcli.training.interfaces import Metrics
from peftcli.training.training_state import TrainingState, finite_or_none


def record_evaluation(
    state: TrainingState,
    metrics: Metrics,
    *,
    config: TrainingConfig,
    checkpoint: CheckpointConfig,
    higher_is_better: Callable[[str], bool],
) -> bool:
    """Notes the metrics of the current step; returns whether this is the best evaluation so far.

    The base (step 0) is noted and checked for the names that are asked for, but never chosen.
    """
    _require_metrics(metrics, config, checkpoint)
    state.evaluations[state.step] = {name: finite_or_none(value) for name, value in metrics.items()}
    if state.step == 0:
        return False
    # a metric that is not finite loses; a loss that is not says that the run is broken
    if not math.isfinite(metrics.get("eval_loss", 0.0)):
        raise NumericalError(f"the evaluation loss is {metrics['eval_loss']} at step {state.step}")
    _watch(state, metrics, config, higher_is_better)
    if checkpoint.best is None:
        return False
    state.best_metric = checkpoint.best
    value = metrics[checkpoint.best]
    if not _improves(value, state.best_value, 0.0, higher=higher_is_better(checkpoint.best)):
        return False
    state.best_step, state.best_value = state.step, value
    return True


def _require_metrics(metrics: Mapping[str, float], config: TrainingConfig, checkpoint: CheckpointConfig) -> None:
    wanted = {"checkpoint.best": checkpoint.best}
    if config.early_stopping is not None:
        wanted["training.early_stopping.metric"] = config.early_stopping.metric
    for key, name in wanted.items():
        if name is not None and name not in metrics:
            raise RecipeError(
                f"{key} names {name}, which the evaluation does not report",
                where=key,
                fix=f"use one of {', '.join(sorted(metrics))}, or add it to evaluation.metrics",
            )


def _watch(
    state: TrainingState, metrics: Metrics, config: TrainingConfig, higher_is_better: Callable[[str], bool]
) -> None:
    rule = config.early_stopping
    if rule is None:
        return
    value = metrics[rule.metric]
    if _improves(value, state.watched_value, rule.min_delta, higher=higher_is_better(rule.metric)):
        state.watched_value, state.bad_evaluations = value, 0
        return
    # counted in evaluations, not in steps
    state.bad_evaluations += 1
    state.stopped_early = state.bad_evaluations >= rule.patience


def _improves(value: float, best: float | None, min_delta: float, *, higher: bool) -> bool:
    # before any comparison: NaN is neither above nor below
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value > best + min_delta if higher else value < best - min_delta
