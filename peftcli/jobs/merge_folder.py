"""The folder of a merged model: that of its base, with the changed tensors in their places and nothing lost.

Every file and every tensor of the base that the merge does not change is carried over as it is, also those that the
loaded class has no place for (a vision tower, a second head).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from peftcli import files
from peftcli.errors import StorageError
from peftcli.jobs.merge_witness import TypeOf
from peftcli.models.companions import (
    files_beside_weights,
    same_tokenizer,
    tokenizer_files,
    write_tokenizer,
)
from peftcli.models.load import load_config, load_tokenizer
from peftcli.models.snapshot import snapshot
from peftcli.models.source import CONFIG_NAME, BaseSource
from peftcli.models.storage_names import CONFIG_KEYS as QUANTIZED_KEYS
from peftcli.models.stored import StoredTensor, tensors_in
from peftcli.models.structure import output_embedding
from peftcli.models.weight_files import INDEX_NAME, NAMED_BY_CONFIG, SINGLE_NAME

_NOT_OF_THE_MODEL = frozenset({"dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures"})
_LABELS = frozenset({"id2label", "label2id", "num_labels", "problem_type", "pad_token_id"})
"""Set when the base is opened for a head of the adapter's, before the configuration is looked at."""
_DTYPE_KEYS = ("dtype", "torch_dtype")
_CONFIG_LIMIT_BYTES = 64 << 20


@dataclass(frozen=True)
class Changes:
    """What the merge does to the base's folder."""

    base: Mapping[str, StoredTensor]
    """The tensors in the base's files."""
    config_before: dict[str, Any]
    """The model's configuration without the adapter."""
    type_of: TypeOf
    """The type that each tensor of the model is stored in."""
    dtype: torch.dtype | None
    """The type that was asked for; None keeps the base's own."""
    main: torch.dtype
    """The type that most of the base's values have."""

    def type_of_carried(self, tensor: StoredTensor) -> torch.dtype | None:
        """Of a tensor that no part of the model owns."""
        if self.dtype is None or not tensor.is_float:
            return None
        apart = tensor.dtype == torch.float32 and self.main != torch.float32
        return None if apart and self.dtype != torch.float32 else self.dtype


def write_model(staging: files.StagedFolder, model: nn.Module, source: BaseSource, changes: Changes, limit: int) -> int:
    """Weights and `config.json`. The model's tensors are given up on the way. Returns how many tensors of the base were
    carried over that the model's class does not own."""
    with staging.scratch() as scratch:
        state = _state(model, changes.type_of)
        model.save_pretrained(scratch, state_dict=dict(state), max_shard_size=limit)  # type: ignore[operator]
        config = _config(source, model, changes, set(changes.base))
        model.to("meta")
        saved = tensors_in(sorted(scratch.glob("*.safetensors")))
        copies = {name: state[name] for name in set(changes.base) & set(state) - set(saved)}
        new = _renamed(saved, changes.base)
        carried = [name for name in changes.base if name not in saved and name not in copies and name not in new]
        entries = [_Entry(name, found) for name, found in saved.items()]
        entries += [_Entry(name, None, tensor=tensor) for name, tensor in copies.items()]
        entries += [_Entry(name, changes.base[name], changes.type_of_carried(changes.base[name])) for name in carried]
        _write_shards(staging, entries, limit, scratch)
        for leftover in scratch.iterdir():
            leftover.unlink()
    staging.write(CONFIG_NAME, config)
    return len(carried)


def _state(model: nn.Module, type_of: TypeOf) -> dict[str, Tensor]:
    """The model's tensors in the types of the files; what is one tensor in the model stays one."""
    cast: dict[int, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in cast:
            plain = tensor.detach()
            cast[id(tensor)] = plain.to(type_of(name)) if plain.is_floating_point() else plain
        found[name] = cast[id(tensor)]
    return found


def _renamed(saved: Mapping[str, StoredTensor], base: Mapping[str, StoredTensor]) -> set[str]:
    """Names of the base's files that stand for a tensor which was saved under another name (a prefix more or less)."""
    unknown = [found for name, found in saved.items() if name not in base]
    return {
        name
        for name, tensor in base.items()
        if name not in saved
        for other in unknown
        if tensor.shape == other.shape and (_is_end(name, other.name) or _is_end(other.name, name))
    }


def _is_end(end: str, name: str) -> bool:
    return end.count(".") > 1 and name.endswith("." + end)


@dataclass(frozen=True)
class _Entry:
    name: str
    stored: StoredTensor | None
    dtype: torch.dtype | None = None
    tensor: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        if self.tensor is not None:
            return self.tensor.numel() * self.tensor.element_size()
        assert self.stored is not None
        width = (self.dtype or self.stored.dtype or torch.float64).itemsize
        return torch.Size(self.stored.shape).numel() * width

    def read(self) -> Tensor:
        if self.tensor is not None:
            return self.tensor.cpu()
        assert self.stored is not None
        found = self.stored.read()
        return found if self.dtype is None else found.to(self.dtype)


def _write_shards(staging: files.StagedFolder, entries: list[_Entry], limit: int, scratch: Path) -> None:
    shards = _cut(entries, limit)
    names = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    if len(shards) == 1:
        names = [SINGLE_NAME]
    for position, (name, shard) in enumerate(zip(names, shards, strict=True)):
        tensors = {entry.name: entry.read().contiguous().clone() for entry in shard}
        staging.write(name, save(tensors, {"format": "pt"}))
        needed = {entry.stored.file for later in shards[position + 1 :] for entry in later if entry.stored}
        for file in scratch.glob("*.safetensors"):
            if file not in needed:
                file.unlink()
    if len(shards) > 1:
        total = sum(entry.num_bytes for entry in entries)
        weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        staging.write_json(INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _cut(entries: list[_Entry], limit: int) -> list[list[_Entry]]:
    """Runs of entries of at most `limit` bytes, or of a single larger one."""
    shards: list[list[_Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.num_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.num_bytes
    return shards


# -- config.json -----------------------------------------------------------------------------------------------------


def _config(source: BaseSource, model: nn.Module, changes: Changes, names: set[str]) -> bytes:
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
    if document.get("architectures") and any("." in name and _is_task_head(model, name) for name in head):
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


# -- everything else -------------------------------------------------------------------------------------------------


def write_beside(
    staging: files.StagedFolder, source: BaseSource, adapter: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The files beside the weights; the tokenizer that belongs to the adapter, where it is another than the base's."""
    folder = snapshot(source).folder
    beside = files_beside_weights(folder)
    own = tokenizer_files(adapter)
    if "tokenizer.json" in own and not same_tokenizer(load_tokenizer(source), tokenizer):
        beside = {name: path for name, path in beside.items() if name not in tokenizer_files(folder)}
        write_tokenizer(staging, tokenizer, adapter)
    for name, path in beside.items():
        staging.copy(path, name)


def require_space(output: Path, model: nn.Module, changes: Changes, limit: int) -> None:
    """Room for the model, what is carried over, and for a while the files that it is put together from."""
    own = sum(t.numel() * changes.type_of(name).itemsize for name, t in model.named_parameters())
    carried = sum(_Entry(name, found).num_bytes for name, found in changes.base.items())
    needed = int(1.05 * (own + max(own, carried) + min(limit, own)))
    free = files.free_bytes(output.absolute())
    if free < needed:
        raise StorageError(
            f"no space for the merged model: {needed:,} bytes are needed, {free:,} are free",
            where=str(output),
            fix="free some space, or choose an --output on another disk",
        )
