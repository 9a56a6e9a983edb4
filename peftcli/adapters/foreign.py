"""Adapter folders of other libraries: recognised, checked, and put on a model in our own terms.

AdapterHub's `adapters`:

    adapter_config.json          {"config": {...}, "model_class", "model_name", "name", "version": "adapters.1.3.0"}
    adapter.safetensors          tensors named after the modules of that library's own model classes
    model_head.safetensors       the task head, where one was saved with the adapter

mlx-lm:

    adapter_config.json          {"fine_tune_type": "lora", "lora_parameters": {"rank", "scale", "dropout"}, "model"}
    adapters.safetensors         tensors named after the modules of the same model in MLX

A method that can read such folders has a file of the library's name (`adapterhub.py`, `mlx.py`) beside its `method.py`,
with two functions: `reads` (whether a configuration is its own) and `translate` (into configuration and keys of ours).
One that can write them has a third there, `express`. No list of methods is here.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor, nn

from peftcli.adapters.base import Adapter, Summary
from peftcli.adapters.config import MethodConfig
from peftcli.adapters.documents import CONFIG_NAME
from peftcli.adapters.reading import AdapterTensors, install
from peftcli.adapters.registry import method_names
from peftcli.adapters.tensor_file import read_tensors
from peftcli.errors import AdapterError, Fault
from peftcli.models.structure import hidden_size, structure


@dataclass(frozen=True)
class Library:
    """One whose folders are read."""

    name: str
    reader: str
    """Name of the file beside a method that reads them."""
    tensors_name: str
    base_field: str
    """Where the configuration names the base."""


ADAPTERHUB = Library("AdapterHub", "adapterhub", "adapter.safetensors", "model_name")
"""The library `adapters`."""
MLX = Library("MLX", "mlx", "adapters.safetensors", "model")
"""mlx-lm, Apple's."""
HEAD_NAME = "model_head.safetensors"
"""Where that library keeps a head of labels, beside the adapter."""
_PICKLED = ("pytorch_adapter.bin", "pytorch_model_head.bin")


@dataclass(frozen=True)
class ForeignFolder:
    """What a folder of another library holds."""

    path: Path
    library: Library
    document: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    head: Mapping[str, Tensor]

    @property
    def fields(self) -> Mapping[str, Any]:
        """The method's own configuration."""
        fields: Mapping[str, Any] = self.document["config"] if self.library is ADAPTERHUB else self.document
        return fields

    @property
    def where(self) -> str:
        """Its configuration file, as the place that an error names."""
        return str(self.path / CONFIG_NAME)

    def refuse(self, faults: list[str]) -> None:
        """Raises `AdapterError` where there is anything that peftcli does not have."""
        if faults:
            raise AdapterError(
                f"the {self.library.name} adapter uses what peftcli does not have",
                faults=[Fault(fault, self.where) for fault in faults],
            )

    def refuse_strangers(self, keys: Iterable[str]) -> None:
        """Raises `AdapterError` for tensors that belong to nothing here: to leave one out would be to load half."""
        strange = sorted(keys)
        if strange:
            more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
            raise AdapterError(
                f"`{strange[0]}`{more} has no counterpart in peftcli",
                where=str(self.path / self.library.tensors_name),
                fix="save the adapter alone, without fusion or invertible layers",
            )


@dataclass(frozen=True)
class Translation:
    """An adapter in our terms: tensors by the keys of our files."""

    config: MethodConfig
    tensors: Mapping[str, Tensor]
    companions: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Expression:
    """An adapter in another library's terms."""

    fields: Mapping[str, Any]
    """The method's own configuration."""
    tensors: Mapping[str, Tensor]


class Writer(Protocol):
    """What a method's file for a library offers that it can write."""

    def express(self, plain: nn.Module, adapter: Adapter, name: str, where: str) -> Expression:
        """The adapter in the library's terms, under a name there; `plain`: its base, without it. Raises `AdapterError`
        (at `where`) for what the library does not have."""


class Reader(Protocol):
    """What a method's file for a library offers."""

    def reads(self, fields: Mapping[str, Any]) -> bool:
        """Whether the configuration of another library is that of this method."""

    def translate(self, model: nn.Module, foreign: ForeignFolder) -> Translation:
        """The adapter in the terms of this method. Raises `AdapterError` for what the method does not have."""


def library_of(document: Mapping[str, Any]) -> Library | None:
    """The other library that wrote an `adapter_config.json`; None where none is known."""
    # our own files and the reference's always name their `peft_type`
    if "peft_type" in document:
        return None
    if isinstance(document.get("config"), dict) and str(document.get("version", "")).startswith("adapters"):
        return ADAPTERHUB
    is_mlx = isinstance(document.get("lora_parameters"), dict) and "fine_tune_type" in document
    return MLX if is_mlx else None


def is_foreign(document: Mapping[str, Any]) -> bool:
    """Whether another library that is read here wrote an `adapter_config.json`."""
    return library_of(document) is not None


def load_foreign(model: nn.Module, folder: Path, document: Mapping[str, Any], *, trainable: bool) -> Summary:
    """Puts an adapter of another library on a model, its saved head as trained copies. Raises `AdapterError`; the model
    is then untouched."""
    foreign = read_foreign(folder, document)
    # the size of the base is the one fact about it that such a folder holds
    wanted, there = document.get("hidden_size"), hidden_size(model)
    if isinstance(wanted, int) and wanted != there:
        raise AdapterError(
            f"the adapter belongs to a base of hidden size {wanted}, this one has {there}", where=foreign.where
        )
    translation = reader_of(foreign).translate(model, foreign)
    kept = {"base_model_name_or_path": document.get(foreign.library.base_field)}
    parts = AdapterTensors(folder / foreign.library.tensors_name, translation.tensors, translation.companions)
    return install(model, translation.config, parts, kept=kept, trainable=trainable)


def writer_of(library: Library, method: str) -> Writer | None:
    """What expresses a method in another library's terms; None where nothing does."""
    place = f"peftcli.adapters.methods.{method}"
    if importlib.util.find_spec(place) is None or importlib.util.find_spec(f"{place}.{library.reader}") is None:
        return None
    found = importlib.import_module(f"{place}.{library.reader}")
    return cast(Writer, found) if hasattr(found, "express") else None


def read_foreign(folder: Path, document: Mapping[str, Any]) -> ForeignFolder:
    """Reads the tensors. Raises `AdapterError` for pickled or damaged files."""
    library = library_of(document)
    assert library is not None
    pickled = [name for name in _PICKLED if (folder / name).exists()]
    # a pickled file beside a safe one is only left over
    if not (folder / library.tensors_name).exists() and pickled:
        raise AdapterError(
            f"the adapter is pickled ({pickled[0]}), which can run code when read",
            where=str(folder / pickled[0]),
            fix="save it again with `model.save_adapter(folder, name, use_safetensors=True)`",
        )
    head = folder / HEAD_NAME
    return ForeignFolder(
        folder,
        library,
        document,
        read_tensors(folder / library.tensors_name),
        read_tensors(head) if head.exists() else {},
    )


def reader_of(foreign: ForeignFolder) -> Reader:
    """The method that reads this configuration. Raises `AdapterError` where none does."""
    for name in method_names():
        place = f"peftcli.adapters.methods.{name}"
        # a method of another package is not under `methods`
        if (
            importlib.util.find_spec(place) is None
            or importlib.util.find_spec(f"{place}.{foreign.library.reader}") is None
        ):
            continue
        reader = cast(Reader, importlib.import_module(f"{place}.{foreign.library.reader}"))
        if reader.reads(foreign.fields):
            return reader
    kind = foreign.fields.get("architecture") or foreign.fields.get("fine_tune_type") or "unknown"
    raise AdapterError(f"no method reads {foreign.library.name} adapters of the kind {kind!r}", where=foreign.where)


def head_modules(model: nn.Module, foreign: ForeignFolder) -> list[str] | None:
    """Paths of the heads that were saved with the adapter, None where none were. Raises `AdapterError` where the file
    holds a head that this model does not have."""
    heads = structure(model).heads
    named = [next((head for head in heads if key.startswith(head + ".")), None) for key in foreign.head]
    if None in named:
        stranger = list(foreign.head)[named.index(None)]
        raise AdapterError(
            f"the saved head has no counterpart in this model: `{stranger}`",
            where=str(foreign.path / HEAD_NAME),
            fix=f"load a model with that head, or remove {HEAD_NAME} to take the adapter alone",
        )
    return sorted({head for head in named if head is not None}) or None


def head_tensors(foreign: ForeignFolder, prefix: str) -> dict[str, Tensor]:
    """The saved head under the keys of our files."""
    return {prefix + key: tensor for key, tensor in foreign.head.items()}
