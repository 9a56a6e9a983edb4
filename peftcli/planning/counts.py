"""A method laid out on the meta device: exact counts, and whether an adapter that training starts from fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from peftcli.adapters.base import Adapter
from peftcli.adapters.config import MethodConfig
from peftcli.adapters.rehearsing import require_runs
from peftcli.adapters.sources import KEY as INIT_ADAPTER
from peftcli.adapters.starting import StartAdapter, class_made_for, laid_out
from peftcli.adapters.surgery import attached, build, detach, layer_kernels, summary
from peftcli.data.config import DataConfig
from peftcli.errors import AdapterError, RecipeError
from peftcli.kernels.names import GATED_MLP
from peftcli.models.gated_mlp import gated_candidates
from peftcli.models.structure import structure
from peftcli.models.weights import weight_view
from peftcli.planning.padding import require_packable
from peftcli.recipe import LoadedRecipe
from peftcli.tasks.base import Task


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters, exact, and what is known of the model with the method on it."""

    targets: tuple[str, ...]
    trainable: int
    total: int
    base: int
    hidden_size: int
    num_layers: int
    intermediate_size: int
    added_positions: int
    notes: tuple[str, ...]
    left_out: dict[str, str]
    kernels: frozenset[str]
    """Fast paths that task, model and the method's layers can take."""


def attached_counts(
    skeleton: nn.Module, method: MethodConfig, task: Task, start: StartAdapter | None, data: DataConfig
) -> Counts:
    """Exact counts: the method is built on the meta device, exactly as on the real one."""
    shape = structure(skeleton)
    base = sum(parameter.numel() for parameter in skeleton.parameters())
    adapter = laid_out(skeleton, method, start)
    added, left_out = adapter.added_positions(), adapter.left_out
    require_packable(data, task, adapter)
    require_runs(skeleton, adapter)
    found = summary(skeleton)
    kernels = layer_kernels(skeleton) | task.kernels
    detach(skeleton)
    if any(True for _ in gated_candidates(skeleton)):
        kernels |= {GATED_MLP}
    widths = [max(weight_view(module).shape) for module in shape.linears.values()]
    sizes = (shape.hidden_size, shape.num_layers, max(widths, default=0))
    notes = tuple(found.notes)
    return Counts(found.targets, found.trainable, found.total, base, *sizes, added, notes, left_out, kernels)


def fitting(start: StartAdapter, loaded: LoadedRecipe, task: Task) -> StartAdapter:
    """The adapter, where it was made for the models that the task trains. Raises `AdapterError` otherwise."""
    made_for = class_made_for(start.folder)
    if made_for in (None, task.auto_class):
        return start
    raise AdapterError(
        f"the adapter was made for {made_for}, and `task: {task.name}` trains {task.auto_class}",
        where=f"{loaded.origin(INIT_ADAPTER)} ({start.folder})",
        fix="merge it (`peft merge`) and name the merged model under `model.base`, or choose the task it was trained for",
    )


def require_same_layers(loaded: LoadedRecipe, skeleton: nn.Module, method: MethodConfig, start: StartAdapter) -> None:
    """What the recipe says of layers by another rule than the adapter must mean the adapter's layers."""
    meant = set(_targets_of(skeleton, lambda: build(skeleton, method.model_copy(update=dict(loaded.claims)))))
    own = set(_targets_of(skeleton, lambda: start.lay_out(skeleton, method)))
    if meant == own:
        return
    one, other = sorted(meant - own), sorted(own - meant)
    what = f"`{one[0]}`, which the adapter leaves out" if one else f"all but `{other[0]}`, which the adapter has"
    key = next(iter(loaded.claims))
    raise RecipeError(
        f"`method.{key}` contradicts the adapter of `{INIT_ADAPTER}`: it means {what}",
        where=loaded.origin(f"method.{key}"),
        fix="leave it out: the adapter's own fields rule",
    )


def _targets_of(skeleton: nn.Module, lay_out: Callable[[], Adapter]) -> list[str]:
    try:
        return lay_out().targets()
    finally:
        if attached(skeleton) is not None:
            detach(skeleton)
