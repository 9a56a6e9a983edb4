"""Writing `RUN/adapter`: the adapter and everything needed to use it anywhere with the base alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from torch import nn
from transformers import PreTrainedTokenizerBase

from peftcli import folders
from peftcli.adapters.saving import adapter_files
from peftcli.evaluation.prompts import stop_token_ids
from peftcli.models.companions import write_generation_config, write_tokenizer
from peftcli.models.snapshot import snapshot
from peftcli.models.source import BaseSource
from peftcli.redaction import redacted_name
from peftcli.runs.own_files import others_in_adapter
from peftcli.runs.writing_notes import PLAIN, WritingNotes


def write_adapter_folder(
    folder: Path,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: BaseSource,
    tokenizer_source: BaseSource,
    base_name: str,
    revision: str | None,
    card: str | None = None,
    notes: WritingNotes,
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> int:
    """Writes adapter, tokenizer, chat template, generation config and model card as one committed folder.

    Tokenizer and generation config are the files of `tokenizer_source` and `source`, but for a template that the recipe
    gave and for the token by which that ends an answer and what the recipe says of writing.
    `beside`: further files, of the task.

    Returns the bytes of the adapter's own tensors file. Replaces an older adapter only once the new one is complete.
    """
    contents = adapter_files(model, base_name=base_name, revision=revision, notes=notes.to_dict())
    with folders.staged_folder(folder, replace=True) as staging:
        for name, data in (*contents.items(), *beside.items()):
            staging.write(name, data)
        write_tokenizer(staging, tokenizer, _folder_of(tokenizer_source))
        stops = stop_token_ids(model, tokenizer, chat=notes.prompt != PLAIN)
        write_generation_config(staging, source, model, stops, notes.generation.as_generation_config())
        if card is not None:
            staging.write("README.md", redacted_name(card).encode("utf-8"))
        for name in others_in_adapter(folder.parent):
            # what somebody put beside an older adapter goes on lying there
            if name not in staging.files:
                staging.copy(folder / name, name)
    return len(contents["adapter_model.safetensors"])


def _folder_of(source: BaseSource) -> Path:
    # an adapter's folder is no whole base, of which a snapshot could be taken
    return snapshot(source).folder if source.folder is None else source.folder
