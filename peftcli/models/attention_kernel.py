"""The attention kernel that a device would take, on the meta device: what it keeps for the backward pass differs.

torch's own choice on the meta device is always the plain product, which keeps the square of the length. On a CPU and on
CUDA it takes a fused kernel that keeps its inputs, its output and one number a row, unless the shapes forbid it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_PLAIN = 0
"""The number by which torch calls the plain product among its kernels."""
_ROWS = 8


@contextlib.contextmanager
def attention_of_devices() -> Iterator[None]:
    """Inside, attention on the meta device keeps what the kernel of a device keeps, layers that are recomputed in the
    backward pass included."""
    torchs = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **settings: Any) -> Tensor:
        if not query.is_meta:
            return torchs(query, key, value, *args, **settings)
        return _attention(torchs, query, key, value, *args, **settings)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = torchs


def _attention(
    torchs: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **settings: Any,
) -> Tensor:
    sizes = query.shape[-1], value.shape[-1], query.dtype, attn_mask is not None, dropout_p
    if query.dim() != 4 or _kernel(*sizes) == _PLAIN:
        return torchs(query, key, value, attn_mask, dropout_p, is_causal, **settings)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # torch hands the kernel numbers to add, which it keeps
        attn_mask = torch.empty_like(attn_mask, dtype=query.dtype)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    answer: Tensor = fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=settings.get("scale"))[0]
    return answer


@functools.cache
def _kernel(width: int, value_width: int, dtype: torch.dtype, masked: bool, dropout: float) -> int:
    """torch's own choice for a few numbers of the same kind."""
    made = functools.partial(torch.zeros, dtype=dtype, device="cpu")
    query, key = made(1, 1, _ROWS, width), made(1, 1, _ROWS, width)
    mask = torch.ones(1, 1, _ROWS, _ROWS, dtype=torch.bool, device="cpu") if masked else None
    return int(torch._fused_sdp_choice(query, key, made(1, 1, _ROWS, value_width), mask, dropout, not masked))
