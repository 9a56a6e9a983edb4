"""What several processes of a run must have in common: the gradients of a whole batch, the adapter, the checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from peftcli.errors import CheckpointError, NumericalError
from peftcli.training.world import World


def shared_length(parameters: Collection[nn.Parameter]) -> int:
    """Numbers that `taken` gives."""
    return 1 + len(parameters) + sum(parameter.numel() for parameter in parameters)


def taken(loss: Tensor, parameters: Collection[nn.Parameter]) -> Tensor:
    """The loss, which tensors have a gradient, and the gradients, flat in float32; the tensors then have none."""
    has = torch.tensor([0.0 if parameter.grad is None else 1.0 for parameter in parameters], device=loss.device)
    grads = [
        (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).reshape(-1).float()
        for parameter in parameters
    ]
    for parameter in parameters:
        parameter.grad = None
    return torch.cat([loss.detach().float().reshape(1), has, *grads])


def put_back(flat: Tensor, parameters: Collection[nn.Parameter]) -> Tensor:
    """The inverse of `taken`: sets the gradients and returns the loss.

    A tensor that took part in no loss gets no gradient at all: an optimizer moves what has one, be it zero.
    """
    header = flat[: 1 + len(parameters)]
    grads = flat[1 + len(parameters) :].split([parameter.numel() for parameter in parameters])
    for parameter, grad, count in zip(parameters, grads, header[1:].tolist(), strict=True):
        parameter.grad = grad.view_as(parameter).to(parameter.dtype) if count > 0.0 else None
    return header[0]


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits of names and bytes of tensors."""
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def require_alike(world: World, adapter: Mapping[str, Tensor], step: int) -> None:
    """Raises `NumericalError` where the processes' adapters differ: each takes the same steps, with the same bits."""
    if world.size == 1:
        return
    heard = world.meet("adapter", tensors_digest(adapter))
    others = [str(rank + 1) for rank, each in enumerate(heard) if each != heard[0]]
    if others:
        raise NumericalError(
            f"the adapters of the processes differ after step {step}: process {', '.join(others)} from process 1",
            fix="the processes need the same device, packages and threads; `peft doctor` on each machine shows them",
        )


def require_same_checkpoint(world: World, step: int | None) -> None:
    """Raises `CheckpointError` where the processes do not see the same checkpoint."""
    heard = world.meet("checkpoint", step)
    if any(each != heard[0] for each in heard):
        raise CheckpointError(
            f"the processes see other checkpoints: steps {', '.join(str(each) for each in heard)}",
            fix="the run folder must be on a disk that all machines share",
        )
