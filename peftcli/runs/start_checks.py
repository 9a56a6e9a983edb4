"""What is asked of a run that is put together, before it takes its first step."""

from __future__ import annotations

import numpy as np
import torch

from peftcli.adapters.surgery import adapter_of
from peftcli.data.store import TokenStore
from peftcli.errors import ModelError
from peftcli.models.modes import evaluating
from peftcli.runs.assembly import Assembly
from peftcli.runs.packing import require_rows_apart
from peftcli.training.agreement import tensors_digest


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


def _asked_rows(store: TokenStore) -> list[int]:
    """The longest row of a store and the shortest."""
    return [int(np.argmax(store.lengths)), int(np.argmin(store.lengths))]
