"""An adapter folder for Hugging Face PEFT alone, and whether the servers that read it can serve it.

What vLLM and SGLang take is from their documentation and loaders: LoRA of linear layers, one rank and one alpha for the
file, no magnitude, no bias, nothing trained beside the pairs. A pattern of ranks or alphas they read past, silently.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.adapters.config import MethodConfig
from peftcli.adapters.storage import COMPANIONS_NAME, CONFIG_NAME, OWN_NAME, TENSORS_NAME, read_config
from peftcli.errors import AdapterError
from peftcli.models.companions import tokenizer_files

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_VLLM_DEFAULT = 16


def write_folder(staging: files.StagedFolder, adapter: Path, config: MethodConfig) -> list[str]:
    """Copies the two files and the tokenizer byte for byte; returns what to know before serving them.

    Raises `AdapterError` for a method that the reference does not have.
    """
    odd = [name for name, value in config.beyond_peft.items() if getattr(config, name) is value]
    if odd or not config.in_peft:
        what = f"place for {', '.join(odd)}" if odd else f"method {config.name}"
        raise AdapterError(
            f"Hugging Face PEFT has no {what}",
            where=str(adapter),
            fix="`peft convert ADAPTER --to lora`, or `peft merge`",
        )
    for name in (CONFIG_NAME, TENSORS_NAME):
        staging.copy(adapter / name, name)
    for name, path in tokenizer_files(adapter).items():
        if name not in (OWN_NAME, COMPANIONS_NAME):
            staging.copy(path, name)
    return serving_notes(read_config(adapter))


def serving_notes(document: dict[str, Any]) -> list[str]:
    """What stands between the adapter and a server of many adapters, one sentence each; nothing: it can be served."""
    if document.get("peft_type") != "LORA":
        return [_cannot(f"its method is {document.get('peft_type')}", "`peft convert ADAPTER --to lora`, or merge it")]
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
