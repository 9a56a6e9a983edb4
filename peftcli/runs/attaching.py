"""The recipe's method on the base: with a start of its own, or as a checkpoint of the run has it."""

from __future__ import annotations

from peftcli.adapters.base import Summary
from peftcli.adapters.surgery import adapter_of, attach, build, detach, summary
from peftcli.errors import CheckpointError
from peftcli.runs.assembly import Assembly, checkpoint_store, init_context
from peftcli.runs.packing import require_rows_apart
from peftcli.training.seeding import as_deterministic_as_possible


def attach_method(assembly: Assembly, *, resuming: bool) -> Summary:
    """Puts the method on the base. A run that goes on from a checkpoint takes its tensors from there: no start is
    computed from data a second time, and nothing is drawn.

    Raises what `attach` raises, and `CheckpointError` where no checkpoint is good or it is of another adapter.
    """
    method = assembly.prepared.method
    snapshot = checkpoint_store(assembly).newest()[0] if resuming else None
    if snapshot is None:
        # a start that is computed from gradients must repeat like a step
        found = as_deterministic_as_possible(
            lambda: attach(assembly.model, method, context=init_context(assembly)), assembly.accelerator.device
        )
        require_rows_apart(assembly.prepared, assembly.task, assembly.model, adapter_of(assembly.model))
        return found
    adapter = build(assembly.model, method)
    try:
        adapter.load_state(snapshot.adapter)
    except ValueError as error:
        # the base is as it was loaded, should the caller go on with it
        detach(assembly.model)
        raise CheckpointError(
            f"the checkpoint is of another adapter: {error}", fix="train again with `peft train`"
        ) from error
    return summary(assembly.model)
