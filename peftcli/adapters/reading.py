"""Reads adapter folders, ours or Hugging Face PEFT's (`saving` has the files).

Everything is checked before a value is copied: names, shapes, ranks, missing and extra tensors, finiteness, the base.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.adapter_file import AdapterFile, Header
from peftcli.adapters.base import FILE_PREFIX, Adapter, Entry, Summary
from peftcli.adapters.base_modules import named_base_parameters
from peftcli.adapters.bounds import bounded_allocation
from peftcli.adapters.config import MethodConfig
from peftcli.adapters.documents import (
    COMPANIONS_NAME,
    CONFIG_NAME,
    OWN_NAME,
    TENSORS_NAME,
    read_config,
    read_document,
    read_documents,
)
from peftcli.adapters.file_keys import KeyReading, read_keys
from peftcli.adapters.identity import base_fingerprint
from peftcli.adapters.oddities import tell
from peftcli.adapters.registry import config_class_of_type, method
from peftcli.adapters.surgery import adapter_of, bare, build, detach, summary
from peftcli.adapters.tensor_file import read_header, read_tensors, require_finite
from peftcli.errors import AdapterError, Fault
from peftcli.models.added_tokens import note_rows
from peftcli.models.fingerprint import Fingerprint

_FLOAT_TYPES = frozenset({"F64", "F32", "F16", "BF16"})


_TYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


_WHOLE_TYPES = frozenset({"I64", "I32", "I16", "U8", "BOOL"})


def load(
    model: nn.Module,
    folder: str | Path,
    *,
    trainable: bool = False,
    check_base: bool = True,
    converting: bool = False,
) -> Summary:
    """Puts an adapter from disk on a model, ours or Hugging Face PEFT's.

    `trainable`: leave its tensors with `requires_grad`, to train on. `check_base`: compare the base's fingerprint where
    the folder records one. `converting`: read keys that another tool gave its tensors, too.
    Warns (`AdapterWarning`) of what is odd about it.
    Raises `AdapterError` naming everything that does not fit; the model is then untouched.
    """
    model, folder = bare(model), Path(folder)
    document = read_document(folder)
    if "peft_type" not in document:
        # a circle: an adapter of another tool is installed as one of ours
        from peftcli.adapters.foreign import is_foreign, load_foreign

        if is_foreign(document):
            return load_foreign(model, folder, document, trainable=trainable)
    documents = read_documents(folder)
    # before anything is built: a wrong base is named as such, and not as shapes that do not fit
    if check_base:
        require_base(model, documents.own, folder)
    parts = AdapterTensors(folder / TENSORS_NAME, None, None)
    found = install(model, documents.config, parts, kept=documents.kept, trainable=trainable, converting=converting)
    adapter_of(model).kept_notes = dict(documents.own.get("notes") or {})
    return found


@dataclass(frozen=True)
class AdapterTensors:
    """The tensors of an adapter: those of a file, read only once its header fits, or those that are given."""

    path: Path
    tensors: Mapping[str, Tensor] | None
    companions: Mapping[str, Tensor] | None

    def header(self) -> Header:
        """Key -> (type, shape)."""
        if self.tensors is None:
            return read_header(self.path)
        return {key: (_TYPE_NAMES.get(value.dtype, "other"), tuple(value.shape)) for key, value in self.tensors.items()}

    def read(self) -> Mapping[str, Tensor]:
        """Key -> tensor; reads the file where there is one."""
        return read_tensors(self.path) if self.tensors is None else self.tensors

    def file(self, reading: KeyReading) -> AdapterFile:
        """The same by the keys of a model."""
        header = self.header()
        turned = reading.turned
        found = {key: header[name] for key, name in reading.names.items()}
        # other tools store halves transposed: shapes are compared as they will be here
        facts = {key: (dtype, shape[::-1] if key in turned else shape) for key, (dtype, shape) in found.items()}

        def read() -> dict[str, Tensor]:
            tensors = self.read()
            return {key: tensors[name].T if key in turned else tensors[name] for key, name in reading.names.items()}

        return AdapterFile(facts, read, reading.renamed)

    def read_companions(self) -> Mapping[str, Tensor]:
        """Empty where there are none."""
        beside = self.path.with_name(COMPANIONS_NAME)
        if self.companions is None:
            return read_tensors(beside) if beside.exists() else {}
        return self.companions


def has_other_keys(model: nn.Module, folder: str | Path) -> bool:
    """Whether the keys of an adapter in the reference's format are not as the reference writes them for this model:
    another tool made them, or wrappers left their names in them."""
    path = Path(folder) / TENSORS_NAME
    owner = method(config_class_of_type(read_config(Path(folder))["peft_type"], where=str(folder)).name)
    reading = read_keys(read_header(path), model, owner, converting=True, where=str(path))
    return any(key != name for key, name in reading.names.items())


def install(
    model: nn.Module,
    config: MethodConfig,
    parts: AdapterTensors,
    *,
    kept: Mapping[str, Any],
    trainable: bool,
    converting: bool = False,
) -> Summary:
    """Builds a method on a model and fills it, everything checked before a value is copied. Raises `AdapterError` naming
    everything that does not fit; the model is then untouched."""
    adapter, file = lay_out(model, config, parts, kept=kept, converting=converting)
    try:
        fill(adapter, file, parts)
        adapter.set_trainable(trainable)
    # Ctrl-C too: a base with half an adapter on it would pass for one that was loaded
    except BaseException:
        detach(model)
        raise
    return summary(model)


def lay_out(
    model: nn.Module,
    config: MethodConfig,
    parts: AdapterTensors,
    *,
    kept: Mapping[str, Any],
    converting: bool = False,
    heads: Sequence[str] = (),
) -> tuple[Adapter, AdapterFile]:
    """The first half of `install`: builds the method, on the meta device too, once names, shapes and types of all tensors
    fit; no value is read.

    `heads`: modules that are trained whole beside the method, whether or not the file holds them.
    """
    where, folder = str(parts.path), parts.path.parent
    owner = method(config.name)
    # the header first, by which ranks are known before a tensor is read
    reading = read_keys(parts.header(), model, owner, converting=converting, where=where)
    config, file = owner.adopt(model, config, parts.file(reading))
    with bounded_allocation(model, file.shapes, where=str(folder / CONFIG_NAME)):
        adapter = build(model, config.with_heads(heads) if heads else config, file.shapes)
    try:
        adapter.kept_fields = {**adapter.kept_fields, **kept}
        # names and shapes of all before a value of any: a half-filled adapter would look whole
        _check_header(adapter, file.header, parts.path, may_lack=new_keys(adapter, file, heads))
    except BaseException:
        detach(model)
        raise
    return adapter, file


def new_keys(adapter: Adapter, file: AdapterFile, heads: Sequence[str]) -> frozenset[str]:
    """Keys of those heads that a file does not hold: they go on from the base's own."""
    prefixes = tuple(f"{FILE_PREFIX}{head}." for head in heads)
    return frozenset(
        entry.key for entry in adapter.entries() if entry.key.startswith(prefixes) and entry.key not in file.header
    )


def fill(adapter: Adapter, file: AdapterFile, parts: AdapterTensors, *, heads: Sequence[str] = ()) -> None:
    """The second half: every value of the file into an adapter that was laid out for it, and the base's own values into
    new `heads`. Raises `AdapterError` or `NumericalError`; the adapter is then half filled."""
    where, folder = str(parts.path), parts.path.parent
    tensors = file.read()
    require_finite(tensors, where=where)
    _fill(adapter, tensors, folder)
    adapter.settle(tensors, where)
    companions = parts.read_companions()
    if companions:
        require_finite(companions, where=str(folder / COMPANIONS_NAME))
        adapter.load_companions(companions)
    if lacking := new_keys(adapter, file, heads):
        own = dict(named_base_parameters(adapter.model))
        for entry in adapter.entries():
            if entry.key in lacking:
                entry.load(own[entry.key.removeprefix(FILE_PREFIX)].detach())


def require_base(model: nn.Module, own: Mapping[str, Any], folder: Path, *, what: str = "adapter") -> None:
    """Raises `AdapterError` for a base that is not the one whose fingerprint our file in `folder` holds, if it does."""
    recorded = (own.get("base") or {}).get("fingerprint")
    if not recorded:
        return
    try:
        expected = Fingerprint.from_dict(recorded)
    except (KeyError, TypeError) as error:
        raise AdapterError("the recorded fingerprint is damaged", where=str(folder / OWN_NAME)) from error
    if isinstance(count := own["base"].get("rows"), int):
        # it was given rows for new tokens, there and perhaps here
        note_rows(model, count)
    found = base_fingerprint(model)
    if expected.other_storage(found):
        tell(
            f"the {what} was trained on its base stored as {expected.dtype}, this one is {found.dtype}: only names and "
            "shapes could be compared, and answers differ by the rounding",
            where=str(folder),
        )
    difference = expected.difference(found)
    if difference:
        raise AdapterError(
            f"the {what} was trained on another base ({own['base'].get('name')}): {difference}",
            where=str(folder),
            fix="load the base that it was trained on (--model BASE), at the revision that it was trained on",
        )


def _check_header(adapter: Adapter, header: Header, path: Path, *, may_lack: Collection[str] = ()) -> None:
    expected = {entry.key: entry for entry in adapter.file_entries()}
    faults = [
        Fault(f"`{key}` is missing")
        for key, entry in expected.items()
        if key not in header and not entry.optional and key not in may_lack
    ]
    faults += [Fault(f"`{key}` has no counterpart in this model") for key in sorted(set(header) - set(expected))]
    for key, (dtype, shape) in header.items():
        if key not in expected:
            continue
        wanted = expected[key]
        allowed = _FLOAT_TYPES if wanted.tensor.is_floating_point() else _WHOLE_TYPES
        if shape != stored_shape(wanted):
            faults.append(Fault(f"`{key}` has shape {list(shape)}, this model needs {list(stored_shape(wanted))}"))
        elif dtype not in allowed:
            faults.append(Fault(f"`{key}` has type {dtype}, expected one of {', '.join(sorted(allowed))}"))
    if faults:
        shown = [Fault(fault.message) for fault in faults[:5]]
        if len(faults) > 5:
            shown.append(Fault(f"and {len(faults) - 5} more"))
        raise AdapterError(
            f"{path.name} does not fit this base",
            faults=shown,
            where=str(path),
            fix=f"get {path} again, or name the base that it was trained on",
        )
    # written again only if they were there: a file that is read and saved keeps its set of keys
    adapter.absent_keys = frozenset(key for key in expected if key not in header and key not in may_lack)


def stored_shape(entry: Entry) -> tuple[int, ...]:
    """Shape of an entry on disk, found without touching data."""
    if entry.to_disk is None:
        return tuple(entry.tensor.shape)
    # on the meta device: what `to_disk` does to a layout shows in its shape
    return tuple(entry.to_disk(torch.empty_like(entry.tensor, device="meta")).shape)


def _fill(adapter: Adapter, tensors: Mapping[str, Tensor], folder: Path) -> None:
    for entry in adapter.file_entries():
        if entry.key not in tensors:
            continue
        if entry.fixed:
            stored = entry.stored()
            # in the file's type: a copy in half precision was rounded when it was written
            if not torch.equal(stored.cpu(), tensors[entry.key].to(stored.dtype)):
                raise AdapterError(
                    f"`{entry.key}` is a copy of a base tensor and differs from this base's",
                    where=str(folder),
                    fix="load the base that it was trained on",
                )
        else:
            entry.load(tensors[entry.key])
            adapter.read_types[entry.key] = tensors[entry.key].dtype
