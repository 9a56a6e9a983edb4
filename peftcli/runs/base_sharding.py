"""`training.sharding: fsdp`: the base of a run is spread over its processes once the method is on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import nn

from peftcli.adapters.identity import keep_fingerprint
from peftcli.adapters.surgery import adapter_of
from peftcli.errors import ModelError, RecipeError
from peftcli.planning.plan import Prepared
from peftcli.runs.assembly import Assembly
from peftcli.training.group import Group
from peftcli.training.world import World

KEY = "training.sharding"


def is_sharded(prepared: Prepared) -> bool:
    """Whether the recipe spreads the base."""
    return prepared.loaded.recipe.training.sharding != "none"


def require_several(prepared: Prepared, world: World) -> None:
    """Raises `RecipeError` where there is nothing to spread a base over."""
    if is_sharded(prepared) and world.size == 1:
        raise RecipeError(
            "training.sharding spreads the base over processes, and there is one",
            where=prepared.loaded.origin(KEY),
            fix="set training.processes, or start the run by torchrun; or training.sharding: none",
        )


@contextlib.contextmanager
def in_turn(prepared: Prepared, world: World) -> Iterator[None]:
    """Around loading a base that is spread: one process after the other, so that the host has it whole only once."""
    waits = is_sharded(prepared)
    for _ in range(world.rank if waits else 0):
        world.meet("turn")
    yield
    for _ in range(world.size - world.rank if waits else 0):
        world.meet("turn")


def shard_base(assembly: Assembly) -> None:
    """Spreads the base where the recipe asks for it; from here on all processes compute in step."""
    if not is_sharded(assembly.prepared):
        return
    # FSDP takes a second to load, which other runs need not wait for
    from peftcli.models.sharding import local_bytes, require_shardable, shard

    model, world = assembly.model, assembly.world
    require_shardable(model, assembly.blocks)
    trained = tuple(adapter_of(model).trainable_parameters().values())
    whole_bytes = local_bytes(model, trained)
    _require_gain(assembly, trained)
    # what is known of the base's bits is known from now on by this: no process has them all
    keep_fingerprint(model, assembly.base_fingerprint)
    shard(
        model,
        assembly.blocks,
        trained,
        device=assembly.accelerator.device,
        processes=world.size,
    )
    assembly.base_bytes = (whole_bytes, local_bytes(model, trained))
    assert isinstance(world, Group), "several processes"
    world.in_step = True


def _require_gain(assembly: Assembly, trained: Sequence[nn.Parameter]) -> None:
    """What trains is whole in every process: a method that trains the base itself leaves nothing to spread."""
    own = sum(parameter.numel() for parameter in trained)
    total = sum(parameter.numel() for parameter in assembly.model.parameters())
    if 2 * own >= total:
        raise ModelError(
            f"training.sharding spreads what is frozen, and this method trains {own:,} of {total:,} parameters",
            where=assembly.prepared.loaded.origin(KEY),
            fix="use a method with few tensors of its own, or training.sharding: none",
        )
