"""`adapter.gguf`: pairs of low rank beside a model that llama.cpp has loaded.

y = W x + (alpha / r) B A x, with one alpha for the file, which is written so that each pair's own scaling comes out
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from peftcli.adapters.registry import method_of_pairs
from peftcli.errors import AdapterError
from peftcli.exporting.gguf.layouts import Layout, TensorNames
from peftcli.exporting.gguf.writing import Stored, write_tensors
from peftcli.exporting.plain_pairs import PlainPair

NAME = "adapter.gguf"


def write_adapter(path: Path, pairs: Sequence[PlainPair], layout: Layout, config: Any, kind: str, where: str) -> None:
    """Writes the file. Raises `AdapterError` for a layer that llama.cpp does not have."""
    import gguf

    names = TensorNames(layout, config.num_hidden_layers)
    writer = gguf.GGUFWriter(None, layout.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, method_of_pairs())
    # llama.cpp multiplies by alpha / r; with alpha 0 it multiplies by nothing, and B holds each pair's scaling
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)
    tensors: list[Stored] = []
    for pair in pairs:
        own = f"{pair.path}.weight"
        name = names.of(own)
        if name is None:
            raise AdapterError(
                f"llama.cpp has no layer for `{pair.path}`", where=where, fix="add --merged for the whole model"
            )
        _require_known(name, where)
        lora_b = layout.stored(own, pair.lora_B, config)
        tensors += [_stored(f"{name}.lora_a", pair.lora_A), _stored(f"{name}.lora_b", lora_b)]
    write_tensors(writer, path, tensors, kind)


def _require_known(name: str, where: str) -> None:
    if name.startswith(("output.", "token_embd.")):
        raise AdapterError(
            "llama.cpp applies no adapter to a tied head or to token embeddings",
            where=where,
            fix="add --merged for the whole model",
        )


def _stored(name: str, tensor: Tensor) -> Stored:
    return Stored(name, tuple(tensor.shape), lambda: tensor)
