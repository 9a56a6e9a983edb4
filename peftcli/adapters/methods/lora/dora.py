"""DoRA (arXiv:2402.09353, eq. 5): V = W + s B A, y = (m / ||V||) V x, row by row, m learned, ||V|| a constant of the step.

The norm comes from ||W||^2 + 2 s <W, B A> + s^2 ||B A||^2, whose terms need only (out, r) and (r, r) products:
<W, B A> of a row is B (W A^T), ||B A||^2 is B (A A^T) B^T. No (out, in) matrix is formed, nor a float32 copy of W.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS_AT_ONCE = 1024
"""Rows of a half-precision weight that are widened to float32 at a time."""
_SMALLEST = 1e-24


class RowNorms(nn.Module):
    """||W + s B A|| of every row; keeps the row norms of the frozen W between calls."""

    def __init__(self) -> None:
        super().__init__()
        self._squares: Tensor | None = None
        self._squares_of: tuple[int, int] | None = None

    @torch.no_grad()
    def forward(self, weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
        """weight (rows, columns) in its stored type, A (r, columns), B (rows, r) -> (rows,) float32."""
        # a rehearsal on the meta device computes nothing, and torch has no autocast there
        device = "cpu" if weight.is_meta else weight.device.type
        with torch.autocast(device, enabled=False):
            a, b = lora_a.float(), lora_b.float()
            cross = torch.cat([(part.float() @ a.T) for part in weight.split(ROWS_AT_ONCE)])  # W A^T (rows, r)
            gram = a @ a.T  # (r, r)
            squares = self._weight_squares(weight)
            squares = squares + 2.0 * scaling * (cross * b).sum(1) + scaling**2 * ((b @ gram) * b).sum(1)
            # rounding can leave a tiny negative number where W and s B A cancel
            return squares.clamp_min(_SMALLEST).sqrt()

    def _weight_squares(self, weight: Tensor) -> Tensor:
        # a base that was merged into, loaded again or moved has another pointer, version or device
        identity = (weight.data_ptr(), weight._version)
        if self._squares is None or self._squares_of != identity or self._squares.device != weight.device:
            norms = [torch.linalg.vector_norm(part.float(), dim=1) for part in weight.split(ROWS_AT_ONCE)]
            self._squares, self._squares_of = torch.cat(norms).square(), identity
        return self._squares


def merged_rows(combined: Tensor, magnitude: Tensor, norms: Tensor) -> Tensor:
    """m / ||V|| times the rows of V (rows, columns), float32."""
    return combined * (magnitude.detach().float() / norms)[:, None]
