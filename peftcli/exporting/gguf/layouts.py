"""How llama.cpp stores the weights of each family: names, and what its arithmetic expects of their values.

From llama.cpp's own conversion scripts (their `LlamaModel.permute`, the shift of Gemma's norms) and the `gguf` package's
table of tensor names. A family that is not listed is refused: a wrong order of rows gives fluent nonsense.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftcli.errors import AdapterError

_ROTATED = re.compile(r".*\.(q|k)_proj\.(weight|bias)")
_NORM = re.compile(r".*norm\.weight")


@dataclass(frozen=True)
class Layout:
    """One family in llama.cpp's terms."""

    architecture: str
    """Its name in a GGUF file."""
    paired: bool = False
    """Rotary positions turn neighbouring numbers there and halves of a head here: rows of q and k change places."""
    activation: str = "silu"
    """Of the feed-forward part; llama.cpp has it written down."""
    norm_shift: float = 0.0
    """Added to the weights of norms, which multiply by 1 + w here and by w there."""

    def stored(self, name: str, tensor: Tensor, config: Any) -> Tensor:
        """A weight or bias (out, ...) under its name here, as llama.cpp wants it."""
        match = _ROTATED.fullmatch(name) if self.paired else None
        if match is not None:
            return _paired(tensor, config.num_attention_heads if match[1] == "q" else config.num_key_value_heads)
        if self.norm_shift and _NORM.fullmatch(name):
            return tensor.float() + self.norm_shift
        return tensor


LAYOUTS = {
    "llama": Layout("llama", paired=True),
    "mistral": Layout("llama", paired=True),
    "qwen2": Layout("qwen2"),
    "qwen3": Layout("qwen3"),
    "gemma": Layout("gemma", activation="gelu_pytorch_tanh", norm_shift=1.0),
    "gemma2": Layout("gemma2", activation="gelu_pytorch_tanh", norm_shift=1.0),
    "gemma3_text": Layout("gemma3", activation="gelu_pytorch_tanh", norm_shift=1.0),
    "phi3": Layout("phi3"),
}
"""By `model_type`."""


def layout_of(config: Any, where: str) -> Layout:
    """Raises `AdapterError` for a family whose layout in llama.cpp is not known here."""
    found = LAYOUTS.get(str(config.model_type))
    if found is None:
        raise AdapterError(
            f"how llama.cpp stores a `{config.model_type}` model is not known here",
            where=where,
            fix=f"families that are: {', '.join(sorted(LAYOUTS))}; else merge it and use llama.cpp's own script",
        )
    return found


class TensorNames:
    """Names of tensors here -> their names in a GGUF file, as the `gguf` package knows them."""

    def __init__(self, layout: Layout, num_blocks: int) -> None:
        import gguf

        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        self._map = gguf.get_tensor_name_map(kinds[layout.architecture], num_blocks)

    def of(self, name: str) -> str | None:
        """None where llama.cpp has no such tensor."""
        found: str | None = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        return found


def _paired(tensor: Tensor, heads: int) -> Tensor:
    """Row j of a head's first half and row j of its second become neighbours."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return torch.transpose(halves, 1, 2).reshape(tensor.shape)
