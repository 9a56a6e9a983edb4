"""LoRA for mlx-lm: y = W x + scale (x A) B, with A (in, r) and B (r, out), one rank and one scale for the file.

mlx-lm makes its layers from `keys`, by name within a block, in every one of the last `num_layers` blocks, and loads the
tensors without asking whether all of them found a place. So every such layer of every block is written, those that
have no pair as zeros, and a pair outside of the blocks is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peftcli import folders
from peftcli.adapters.documents import CONFIG_NAME
from peftcli.adapters.foreign import MLX
from peftcli.adapters.layers import unwrapped
from peftcli.adapters.registry import method_of_pairs
from peftcli.adapters.tensor_file import serialise
from peftcli.errors import AdapterError
from peftcli.exporting.plain_pairs import PlainPair
from peftcli.models.structure import structure
from peftcli.models.weights import weight_view


def write_folder(
    staging: folders.StagedFolder, model: nn.Module, pairs: Sequence[PlainPair], base: str | None, where: str
) -> None:
    """Writes `adapters.safetensors` and `adapter_config.json`. Raises `AdapterError` for a pair outside of the blocks."""
    blocks = list(structure(model).blocks)
    keys = sorted({_within(pair.path, blocks, where) for pair in pairs})
    rank = max(pair.lora_A.shape[0] for pair in pairs)
    by_path = {pair.path: pair for pair in pairs}
    modules = {path: unwrapped(module) for path, module in model.named_modules() if not path.endswith(".base_layer")}
    tensors: dict[str, Tensor] = {}
    for path in (f"{block}.{key}" for block in blocks for key in keys):
        if path not in modules:
            # of a block of another kind, where mlx-lm finds no such layer either
            continue
        out_features, in_features = weight_view(modules[path]).shape
        lora_a, lora_b = torch.zeros(in_features, rank), torch.zeros(rank, out_features)
        if path in by_path:
            pair = by_path[path]
            lora_a[:, : pair.lora_A.shape[0]] = pair.lora_A.T
            lora_b[: pair.lora_A.shape[0]] = pair.lora_B.T
        tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"] = lora_a, lora_b
    staging.write(MLX.tensors_name, serialise(tensors, {"format": "mlx"}))
    # the scaling of each pair is in its B
    given = {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": keys}
    named = {} if base is None else {MLX.base_field: base}
    document = {"fine_tune_type": method_of_pairs(), "num_layers": len(blocks), "lora_parameters": given, **named}
    staging.write_json(CONFIG_NAME, document)


def _within(path: str, blocks: Sequence[str], where: str) -> str:
    """The layer's name within its block."""
    block = next((block for block in blocks if path.startswith(f"{block}.")), None)
    if block is None:
        raise AdapterError(
            f"mlx-lm adapts layers within the blocks only, and `{path}` is none",
            where=where,
            fix="train without it, or `peft merge` and convert the whole model",
        )
    return path.removeprefix(f"{block}.")
