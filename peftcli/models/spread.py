"""Weights that are spread over processes, as everybody else reads them: whole."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its values. Where it is spread it is gathered from all processes, which must all ask for it."""
    # its type is loaded only where it can occur
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
