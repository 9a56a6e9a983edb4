"""The recipe's method on the base: with a start of its own, as another adapter, or as a checkpoint of the run has it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from peftcli.adapters.base import InitContext, Summary
from peftcli.adapters.surgery import adapter_of, attach, build, detach, summary
from peftcli.errors import CheckpointError
from peftcli.models.stored import original_weight
from peftcli.runs.as_written import require_as_written
from peftcli.runs.assembly import Assembly
from peftcli.runs.identity import checkpoint_store
from peftcli.runs.locating import locate
from peftcli.runs.packing import require_rows_apart
from peftcli.runs.referring import ask_model_at_start
from peftcli.training.seeding import as_deterministic_as_possible, stream_seed


def attach_method(assembly: Assembly, *, resuming: bool) -> Summary:
    """Puts the method on the base. A run that goes on from a checkpoint takes its tensors from there: no start is
    computed from data a second time, and nothing is drawn.

    Raises what `attach` raises, and `CheckpointError` where no checkpoint is good or it is of another adapter.
    """
    method, start = assembly.prepared.method, assembly.prepared.start
    if start is None:
        ask_model_at_start(assembly)
    snapshot = checkpoint_store(assembly).newest()[0] if resuming else None
    if start is not None:
        require_as_written(locate(start.folder))
        start.put_on(assembly.model, method)
        # now, for the model is as it was at the start, whatever a checkpoint makes of it
        ask_model_at_start(assembly)
        require_rows_apart(assembly.prepared, assembly.task, assembly.model, adapter_of(assembly.model))
    if start is not None and snapshot is None:
        return summary(assembly.model)
    if snapshot is None:
        # a start that is computed from gradients must repeat like a step
        found = as_deterministic_as_possible(
            lambda: attach(assembly.model, method, context=init_context(assembly)), assembly.accelerator.device
        )
        require_rows_apart(assembly.prepared, assembly.task, assembly.model, adapter_of(assembly.model))
        return found
    adapter = build(assembly.model, method) if start is None else adapter_of(assembly.model)
    try:
        adapter.load_state(snapshot.adapter)
    except ValueError as error:
        # the base is as it was loaded, should the caller go on with it
        detach(assembly.model)
        raise CheckpointError(
            f"the checkpoint is of another adapter: {error}", fix="train again with `peft train`"
        ) from error
    return summary(assembly.model)


INIT_BATCHES = 8


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
