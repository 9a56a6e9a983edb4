"""What a method cannot do on a structure, found on a model without weights."""

from __future__ import annotations

from torch import nn

from peftcli.adapters.base import Adapter
from peftcli.adapters.base_modules import parent_of
from peftcli.errors import AdapterError
from peftcli.models.trace import rehearsal


def require_runs(skeleton: nn.Module, adapter: Adapter) -> None:
    """Raises `AdapterError` where a model on the meta device does not run with its adapter, though it does without, or
    where no gradient would reach what is trained."""
    exempt = adapter.gradient_exempt()
    trained = {name: tensor for name, tensor in adapter.trainable_parameters().items() if name not in exempt}
    failure = rehearsal(skeleton, trained, lambda path: _standing_at(skeleton, path))
    if failure is not None:
        raise AdapterError(
            f"{adapter.config.name} does not run on {type(skeleton).__name__}: {failure}",
            fix="use lora, which adapts every family, or another of `peft methods`",
        )


def _standing_at(model: nn.Module, path: str) -> nn.Module | None:
    """The module or its outermost wrapper; None where the adapter has changed the tree itself."""
    try:
        parent, name = parent_of(model, path)
        return parent.get_submodule(name)
    except AttributeError:
        return None
