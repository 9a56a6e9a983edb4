"""Whether servers of many adapters can serve a LoRA folder.

What vLLM and SGLang take is from their documentation and loaders: LoRA of linear layers, one rank and one alpha for the
file, no magnitude, no bias, nothing trained beside the pairs. A pattern of ranks or alphas they read past, silently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from peftcli.adapters.serving_note import ServingNote, cannot_serve

_KEY = re.compile(r"base_model\.model\..+\.lora_(?P<side>[AB])\.weight")
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be."""
_VLLM_DEFAULT = 16


def serving_notes(document: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[ServingNote]:
    """What stands between an adapter and such a server, one sentence each; nothing: it can be served.

    `shapes`: of its tensors, by their keys in the file.
    """
    faults = []
    if document.get("use_dora"):
        faults.append(cannot_serve("it has DoRA's magnitudes", "`peft convert ADAPTER --to lora --r N`, or merge it"))
    if document.get("bias", "none") != "none" or document.get("lora_bias"):
        faults.append(cannot_serve("it trains biases", "merge it"))
    saved = document.get("modules_to_save")
    if saved or document.get("trainable_token_indices"):
        faults.append(cannot_serve("it holds trained modules or tokens beside its pairs", "merge it"))
    for name in ("rank_pattern", "alpha_pattern"):
        if document.get(name):
            faults.append(cannot_serve(f"they read past its {name}", "`peft convert ADAPTER --to lora --r N`"))
    rank = document.get("r")
    if not faults:
        faults += _in_tensors(shapes, rank)
    if not faults and isinstance(rank, int):
        least = next((size for size in _RANKS if size >= rank), None)
        if least is None:
            faults.append(
                cannot_serve(f"its rank {rank} is beyond {_RANKS[-1]}", "`peft convert ADAPTER --to lora --r N`")
            )
        elif least > _VLLM_DEFAULT:
            faults.append(ServingNote(f"vLLM needs --max-lora-rank {least} for it", refuses=False))
    return faults


def server_flags(documents: Sequence[dict[str, Any]]) -> list[str]:
    """What vLLM must be told to take some adapters that it can serve: its default rank is lower than many."""
    rank = max(int(document["r"]) for document in documents)
    least = next(size for size in _RANKS if size >= rank)
    return ["--max-lora-rank", str(least)] if least > _VLLM_DEFAULT else []


def _in_tensors(shapes: Mapping[str, tuple[int, ...]], rank: Any) -> list[ServingNote]:
    """What the configuration does not say: tensors beside the pairs, pairs of other ranks than its own."""
    odd = [key for key, shape in shapes.items() if not _KEY.fullmatch(key) or len(shape) != 2]
    if odd:
        return [cannot_serve(f"`{odd[0]}` is no pair of a linear layer", "merge it")]
    sides = {key: "AB".index(match["side"]) for key in shapes if (match := _KEY.fullmatch(key))}
    others = sorted({shapes[key][side] for key, side in sides.items()} - {rank})
    if others:
        return [
            cannot_serve(
                f"it has pairs of rank {others[0]} beside its r of {rank}", "`peft convert ADAPTER --to lora --r N`"
            )
        ]
    return []
