"""What a task with labels asks of data and base before the structure is known: the head, and that it is trained."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from peftcli.adapters.config import MethodConfig
from peftcli.adapters.sources import KEY
from peftcli.adapters.starting import StartAdapter
from peftcli.data.faults import excerpt, listed
from peftcli.data.prepare import PreparedData
from peftcli.errors import DataError
from peftcli.models.base_config import sentence_folder, trained_head
from peftcli.models.heads import LabelHead
from peftcli.models.source import BaseSource
from peftcli.models.structure import structure
from peftcli.tasks.base import Task


def known_to(task: Task, source: BaseSource, start: StartAdapter | None = None) -> Task:
    """The task as the base, or the adapter that training goes on from, is used. Raises `ModelError` for a use that is not
    computed here."""
    if not task.reads_base:
        return task
    return task.for_base(*([] if start is None else [start.folder]), sentence_folder(source))


def label_head(
    task: Task, data: PreparedData, source: BaseSource, seed: int, start: StartAdapter | None = None
) -> LabelHead | None:
    """The labels of the run's model; None for a task without labels. `seed`: what a new head is drawn from. `start`: the
    adapter that training goes on from, whose labels then stand.

    Raises `DataError` for labels that cannot be learned.
    """
    if not task.learns_labels:
        return None
    own = None if start is None else start.labels
    found = task.head_for(data.train, data.validation, own or trained_head(source, task.auto_class))
    if own is not None and found is not None:
        _require_same_labels(found, own)
    return None if found is None else replace(found, seed=seed)


def _require_same_labels(found: LabelHead, own: LabelHead) -> None:
    """An output of a head that is trained on must go on meaning what it meant."""
    if found.names != own.names:
        new = [name for name in found.names if name not in own.names]
        what = f"the label {excerpt(new[0])!r}" if new else f"{len(found.names)} labels"
        raise DataError(
            f"the rows have {what}, and the head of the adapter of `{KEY}` gives {listed(own.names)}",
            where="data.train",
            fix="train on rows with the adapter's labels, or without `model.init_adapter`",
        )
    if own.problem not in (None, found.problem):
        raise DataError(
            f"the rows ask for {found.problem}, and the adapter of `{KEY}` was trained for {own.problem}",
            where="data.train",
            fix="classification.problem_type says which it is",
        )


def trained_with_head(method: MethodConfig, task: Task, skeleton: nn.Module) -> MethodConfig:
    """The method as it is attached: a task with labels trains the head of the model as well."""
    return method.with_heads(structure(skeleton).heads) if task.learns_labels else method
