"""Writing `RUN/adapter`: the adapter and everything needed to use it anywhere with the base alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from peftcli import files
from peftcli.adapters.storage import adapter_files
from peftcli.redaction import redacted


def write_adapter_folder(
    folder: Path,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    base_name: str,
    revision: str | None,
    card: str | None = None,
    notes: Mapping[str, Any] | None = None,
) -> int:
    """Writes adapter, tokenizer, chat template, generation config and model card as one committed folder.

    Returns the bytes of the adapter's own tensors file. Replaces an older adapter only once the new one is complete.
    """
    contents = adapter_files(model, base_name=base_name, revision=revision, notes=notes)
    with files.staged_folder(folder, replace=True) as staging:
        for name, data in contents.items():
            staging.write(name, data)
        with staging.scratch() as scratch:
            tokenizer.save_pretrained(scratch)
            if getattr(model, "generation_config", None) is not None:
                model.generation_config.save_pretrained(scratch)  # type: ignore[union-attr, operator]
        if card is not None:
            staging.write("README.md", redacted(card).encode("utf-8"))
    return len(contents["adapter_model.safetensors"])
