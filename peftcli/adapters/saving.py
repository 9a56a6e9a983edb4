"""Writes adapter folders: the two files that Hugging Face PEFT reads and writes, and one of ours beside them.

adapter_config.json          the reference's schema, keys sorted
adapter_model.safetensors    the reference's keys, metadata {"format": "pt"}
peftcli.json                 ours: the base's fingerprint, the method's fields that the schema has no place for
peftcli_encoder.safetensors  ours: prompt-encoder weights, where a method has them
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftcli import files
from peftcli.adapters.base import Adapter
from peftcli.adapters.documents import (
    COMPANIONS_NAME,
    CONFIG_NAME,
    FORMAT,
    OWN_NAME,
    TENSORS_NAME,
)
from peftcli.adapters.identity import base_fingerprint, type_read_in
from peftcli.adapters.layers import unwrapped
from peftcli.adapters.surgery import adapter_of, bare, disabled
from peftcli.adapters.tensor_file import METADATA, require_finite, serialise
from peftcli.models.added_tokens import rows_given
from peftcli.models.auto_class import purpose_of
from peftcli.models.structure import input_embedding


def adapter_files(
    model: nn.Module,
    *,
    base_name: str | None = None,
    revision: str | None = None,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """The adapter's files by name, ready to be written. `notes` go into our own file, for whoever uses the adapter.

    Raises `NumericalError` when a tensor is not finite: such an adapter is never written.
    """
    model = bare(model)
    adapter = adapter_of(model)
    config, tensors = adapter.saved()
    # a file that was read in half precision is written so again, and gives the same bytes
    tensors = {key: _in_type(value, adapter.read_types.get(key)) for key, value in tensors.items()}
    require_finite(tensors, where="the adapter in memory")
    document = config.to_file(adapter.kept_fields)
    base_name = base_name if base_name is not None else document["base_model_name_or_path"]
    document["base_model_name_or_path"] = base_name
    if revision is not None:
        document["revision"] = revision
    if document["task_type"] is None and document["auto_mapping"] is None and "task_type" not in adapter.kept_fields:
        purpose = purpose_of(model)
        # given a classifier's task, the reference insists on finding its head in the file
        if purpose is not None and not (purpose.labels and not document.get("modules_to_save")):
            document["task_type"] = purpose.task_type
    said = {**adapter.kept_notes, **(notes or {})}
    contents = {
        CONFIG_NAME: json.dumps(document, indent=2, sort_keys=True).encode("utf-8"),
        TENSORS_NAME: serialise(tensors, METADATA),
        OWN_NAME: files.to_json(_own_document(model, adapter, base_name) | {"notes": said}).encode("utf-8"),
    }
    companions = adapter.companions()
    if companions:
        contents[COMPANIONS_NAME] = serialise(companions, METADATA)
    return contents


def _in_type(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in the type that it was read in, unless it has become too fine for it."""
    if dtype is None or value.dtype == dtype:
        return value
    narrowed = value.to(dtype)
    return narrowed if torch.equal(narrowed.to(value.dtype), value) else value


def _own_document(model: nn.Module, adapter: Adapter, base_name: str | None) -> dict[str, Any]:
    with disabled(model):  # the base's own embeddings, not those that a file brought along
        base: dict[str, Any] = {"name": base_name, "fingerprint": base_fingerprint(model).to_dict()}
    if (read_in := type_read_in(model)) is not None:
        base["read_in"] = str(read_in).removeprefix("torch.")
    table = input_embedding(model)
    if table is not None and (count := rows_given(unwrapped(table))):
        base["rows"] = count
    commit = getattr(getattr(model, "config", None), "_commit_hash", None)
    if isinstance(commit, str):
        base["commit"] = commit
    extra = {key: adapter.config.model_dump(mode="json")[key] for key in sorted(adapter.config.recipe_only)}
    return {
        "format": FORMAT,
        "method": adapter.config.name,
        "base": base,
        "model_class": type(model).__name__,
        "fields": extra,
    }


def save(model: nn.Module, folder: str | Path, *, base_name: str | None = None) -> None:
    """Writes the adapter on a model into `folder`, each file atomically.

    `base_name` goes into the configuration (default: what the adapter was loaded with, else the model's own name).
    """
    # the path that the model was loaded from, where no file has said another
    if base_name is None and not adapter_of(model).kept_fields.get("base_model_name_or_path"):
        base_name = getattr(getattr(model, "config", None), "_name_or_path", None) or None
    contents = adapter_files(model, base_name=base_name)
    for name, data in contents.items():
        files.write_bytes(Path(folder) / name, data)
