"""The names of the fast paths as recipes write them, free of torch."""

from __future__ import annotations

from collections.abc import Mapping

OFF = "off"
"""Every pass is plain."""
LOW_RANK = "low_rank"
"""Linear layers with a low-rank update."""

KERNELS: Mapping[str, str] = {
    LOW_RANK: "a frozen linear layer and its low-rank update as one function, computed in the base's type",
}
"""Name of each fast path -> what it does."""
