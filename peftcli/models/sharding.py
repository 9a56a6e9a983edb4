"""A frozen base spread over several processes: each keeps a part of every weight, and a block is whole while it computes.

torch's FSDP2 (`fully_shard`) gathers the weights of a block before its forward pass and before its backward pass, and
lets them go after each. What trains is left out of it: every process has all of the adapter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from peftcli.errors import ModelError
from peftcli.models.storage import storage_of
from peftcli.streams import stdout_kept


def require_shardable(model: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Raises `ModelError` for a base that cannot be spread: packed weights, or layers that were not found."""
    packed = [path for path, module in model.named_modules() if storage_of(module).is_packed]
    if packed:
        raise ModelError(
            f"training.sharding cannot spread packed weights ({len(packed)}, the first is `{packed[0]}`)",
            where="training.sharding",
            fix="set it to none: a packed base is small; or leave model.quantization out",
        )
    if not blocks:
        raise ModelError(
            "training.sharding has no effect: this model's layers were not found",
            where="training.sharding",
            fix="set it to none",
        )


def shard(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    trained: Collection[nn.Parameter],
    *,
    device: torch.device,
    processes: int,
) -> None:
    """Spreads the frozen parameters of a model over all processes, block by block, in place.

    `trained`: what stays whole in every process. All else ends on `device`.
    """
    with stdout_kept():
        mesh = init_device_mesh(device.type, (processes,))
    kept = set(trained)
    _move(trained, device)
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
    # embeddings, head and norms belong to the model: whole from its forward pass to the end of its backward pass, since a
    # loss may go through the head once more, and backward, in between
    fully_shard(model, mesh=mesh, ignored_params=kept)
    _move(model.buffers(), device)
    _keep_names(model)


def _keep_names(model: nn.Module) -> None:
    """FSDP gives a module a class of its own between it and its class: what is written of a model names the latter."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            made = type(module)
            plain = next(each for each in made.__mro__ if each is not made and not issubclass(each, FSDPModule))
            made.__name__, made.__qualname__, made.__module__ = plain.__name__, plain.__qualname__, plain.__module__


def _move(tensors: Iterable[Tensor], device: torch.device) -> None:
    for tensor in tensors:
        tensor.data = tensor.data.to(device)


def local_bytes(model: nn.Module, trained: Collection[nn.Parameter]) -> int:
    """Bytes of the base that this process holds, between two passes."""
    left_out = {id(parameter) for parameter in trained}
    mine = {id(p): p for p in model.parameters() if id(p) not in left_out}
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in mine.values()]
    return sum(part.numel() * part.element_size() for part in parts)
