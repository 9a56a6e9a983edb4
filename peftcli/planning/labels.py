"""What a task with labels asks of data and base before the structure is known: the head, and that it is trained."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from peftcli.adapters.config import MethodConfig
from peftcli.data.prepare import PreparedData
from peftcli.models.heads import LabelHead
from peftcli.models.load import trained_head
from peftcli.models.source import BaseSource
from peftcli.models.structure import structure
from peftcli.tasks.base import Task


def label_head(task: Task, data: PreparedData, source: BaseSource, seed: int) -> LabelHead | None:
    """The labels of the run's model; None for a task without labels. `seed`: what a new head is drawn from.

    Raises `DataError` for labels that cannot be learned.
    """
    if not task.learns_labels:
        return None
    found = task.head_for(data.train, data.validation, trained_head(source, task.auto_class))
    return None if found is None else replace(found, seed=seed)


def trained_with_head(method: MethodConfig, task: Task, skeleton: nn.Module) -> MethodConfig:
    """The method as it is attached: a task with labels trains the head of the model as well."""
    return method.with_heads(structure(skeleton).heads) if task.learns_labels else method
