"""Whether servers of many adapters can serve a LoRA folder.

What vLLM and SGLang take is from their documentation and loaders: LoRA of linear layers, one rank and one alpha for the
file, no magnitude, no bias, nothing trained beside the pairs. A pattern of ranks or alphas they read past, silently.
"""

from __future__ import annotations

from typing import Any

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be."""
_VLLM_DEFAULT = 16


def serving_notes(document: dict[str, Any]) -> list[str]:
    """What stands between the adapter of a configuration and such a server, one sentence each; nothing: it can be served."""
    faults = []
    if document.get("use_dora"):
        faults.append(_cannot("it has DoRA's magnitudes", "`peft convert ADAPTER --to lora --r N`, or merge it"))
    if document.get("bias", "none") != "none" or document.get("lora_bias"):
        faults.append(_cannot("it trains biases", "merge it"))
    saved = document.get("modules_to_save")
    if saved or document.get("trainable_token_indices"):
        faults.append(_cannot("it holds trained modules or tokens beside its pairs", "merge it"))
    for name in ("rank_pattern", "alpha_pattern"):
        if document.get(name):
            faults.append(_cannot(f"they read past its {name}", "`peft convert ADAPTER --to lora --r N`"))
    rank = document.get("r")
    if not faults and isinstance(rank, int):
        least = next((size for size in _RANKS if size >= rank), None)
        if least is None:
            faults.append(_cannot(f"its rank {rank} is beyond {_RANKS[-1]}", "`peft convert ADAPTER --to lora --r N`"))
        elif least > _VLLM_DEFAULT:
            faults.append(f"vLLM needs --max-lora-rank {least} for it")
    return faults


def _cannot(why: str, way: str) -> str:
    return f"vLLM and SGLang cannot serve it: {why}; {way}"
