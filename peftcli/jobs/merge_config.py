"""`config.json` of a merged model: the base's own, but for what the merge changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from peftcli import files
from peftcli.jobs.merge_changes import Changes
from peftcli.models.auto_class import FEATURES, purpose_of
from peftcli.models.base_config import load_config
from peftcli.models.snapshot import snapshot
from peftcli.models.source import CONFIG_NAME, BaseSource
from peftcli.models.storage_names import CONFIG_KEYS as QUANTIZED_KEYS
from peftcli.models.structure import output_embedding
from peftcli.models.weight_files import NAMED_BY_CONFIG

_NOT_OF_THE_MODEL = frozenset({"dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures"})
_LABELS = frozenset({"id2label", "label2id", "num_labels", "problem_type", "pad_token_id"})
"""Set when the base is opened for a head of the adapter's, before the configuration is looked at."""
_DTYPE_KEYS = ("dtype", "torch_dtype")
_CONFIG_LIMIT_BYTES = 64 << 20


def merged_config(source: BaseSource, model: nn.Module, changes: Changes, names: set[str]) -> bytes:
    """The base's own file, byte for byte, but for what the merge changed: tying, depth, the type, a new head's class."""
    raw = files.read_bounded(snapshot(source).files[CONFIG_NAME], limit_bytes=_CONFIG_LIMIT_BYTES)
    document = json.loads(raw)
    before = copy.deepcopy(document)
    config: Any = model.config
    document.pop(NAMED_BY_CONFIG, None)
    for part in (document, *(value for value in document.values() if isinstance(value, dict))):
        for key in QUANTIZED_KEYS:
            part.pop(key, None)
    whole = load_config(source)
    section = _section(document, whole, config)
    labels = {key: value for key, value in whole.to_dict().items() if key in _LABELS}
    _apply(section, {**changes.config_before, **labels}, config.to_dict())
    if document != before:
        _hold_derived(section, config)
        if section is not document and section.get("tie_word_embeddings") is False:
            document["tie_word_embeddings"] = False
    if changes.dtype is not None and changes.dtype != changes.main:
        _set_type(document, str(changes.dtype).removeprefix("torch."))
    head = {name for name, _ in model.named_parameters()} - names
    # a model without a head is saved without its prefix, so its class is no longer the base's
    bare = getattr(model, "base_model", model) is model and purpose_of(model) is FEATURES
    if document.get("architectures") and (bare or any("." in name and _is_task_head(model, name) for name in head)):
        document["architectures"] = [type(model).__name__]
    return raw if document == before else files.to_json(document).encode("utf-8")


def _section(document: dict[str, Any], whole: Any, config: Any) -> dict[str, Any]:
    """The part of `config.json` that the model's configuration was read from: the text part of a composed one."""
    if type(whole) is type(config):
        return document
    for key, value in document.items():
        if isinstance(value, dict) and type(getattr(whole, key, None)) is type(config):
            return value
    return document


def _apply(section: dict[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for key, value in after.items():
        if key in _NOT_OF_THE_MODEL or value == before.get(key):
            continue
        if isinstance(value, dict) and isinstance(section.get(key), dict) and isinstance(before.get(key), dict):
            _apply(section[key], before[key], value)
        else:
            section[key] = value


def _hold_derived(section: dict[str, Any], config: Any) -> None:
    """Fields that a configuration derives from one that the merge changed (T5 scales its last state while it is tied)
    are written out, so that the file means what the merged model does."""
    wanted = config.to_dict()
    read = type(config).from_dict(copy.deepcopy(section)).to_dict()
    for key in set(read) - _NOT_OF_THE_MODEL:
        if key in wanted and isinstance(wanted[key], bool | int | float | str) and read[key] != wanted[key]:
            section[key] = wanted[key]


def _set_type(document: dict[str, Any], name: str) -> None:
    for key in _DTYPE_KEYS:
        if isinstance(document.get(key), str):
            document[key] = name
    for value in document.values():
        if isinstance(value, dict):
            _set_type(value, name)
    if not any(key in document for key in _DTYPE_KEYS) and "model_type" in document and "architectures" in document:
        document["dtype"] = name


def _is_task_head(model: nn.Module, name: str) -> bool:
    """Whether a tensor lies beside the backbone, in a head that is not the output embedding."""
    backbone, output = getattr(model, "base_model", model), output_embedding(model)
    head = name.split(".")[0]
    module = getattr(model, head, None)
    return backbone is not model and module is not backbone and module is not None and module is not output
