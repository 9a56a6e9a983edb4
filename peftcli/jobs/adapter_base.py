"""The base that an adapter belongs to: where it lies, at which revision, and which model class the adapter was made for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from peftcli import files
from peftcli.adapters.documents import TENSORS_NAME, noted_tokens, read_own
from peftcli.adapters.starting import class_made_for
from peftcli.adapters.tensor_file import read_header
from peftcli.errors import AdapterError, HubError, ModelError
from peftcli.models.added_tokens import AddedTokens, added_tokens, give_rows
from peftcli.models.auto_class import LABELLING, WRITES_ON, auto_class_with
from peftcli.models.base_config import load_config
from peftcli.models.heads import LabelHead
from peftcli.models.load import DTYPES, load_model
from peftcli.models.own_files import file_fault
from peftcli.models.poolers import has_pooler
from peftcli.models.skeleton import meta_model
from peftcli.models.snapshot import snapshot
from peftcli.models.source import BUILTIN_PREFIX, BaseSource, resolve_base
from peftcli.models.storage_names import PACKAGES, quantization_of
from peftcli.models.streamed import NotStreamed
from peftcli.models.streaming import StreamedBase, open_streamed
from peftcli.models.structure import structure
from peftcli.models.tokenizer import load_tokenizer
from peftcli.runs.locating import Location

TOKENIZER_NAME = "tokenizer.json"
_OTHER_BASE = "name it, or another copy of it: --model BASE"


# -- where it lies -----------------------------------------------------------------------------------------------


def base_of(location: Location) -> BaseSource:
    """The base, at the revision that the adapter was made for.

    A relative path is looked for in the working directory (as the reference does), beside the adapter folder and in it.
    Raises `AdapterError` where none is recorded, none of them exists, or they are different folders.
    """
    base = location.base
    if base is None:
        raise AdapterError(
            f"the {location.noun} does not say which base it belongs to",
            where=str(location.adapter),
            fix="add --model BASE",
        )
    if location.told or base.startswith(BUILTIN_PREFIX):
        return resolve_base(base, folder=Path.cwd(), revision=location.revision)
    found = _recorded_folder(base, location)
    if found is not None:
        return resolve_base(str(found), folder=Path.cwd())
    return BaseSource(base, base, location.revision, None)


def _recorded_folder(base: str, location: Location) -> Path | None:
    """The folder that a recorded name means; None where it is a name of the Hub."""
    adapter = location.adapter.absolute()
    places = [place / Path(base).expanduser() for place in (Path.cwd(), adapter.parent, adapter)]
    there = list(dict.fromkeys(place.resolve() for place in places if place.is_dir()))
    if len(there) > 1:
        raise AdapterError(
            f"the {location.noun}'s base {base} is there twice: {there[0]} and {there[1]}",
            where=str(location.adapter),
            fix="say which one: --model BASE",
        )
    if there:
        return there[0]
    # what is beside the adapter decides nothing here: a name with at most one slash is then one of the Hub
    if not files.names_a_path(base, adapter / "nowhere"):
        return None
    tried = ", ".join(dict.fromkeys(str(place.parent.resolve() / place.name) for place in places))
    raise AdapterError(
        f"the {location.noun}'s base {base} is gone: looked for {tried}", where=str(location.adapter), fix=_OTHER_BASE
    )


@contextlib.contextmanager
def model_option_named(location: Location) -> Iterator[None]:
    """Adds the way out to the error of a recorded base that cannot be had."""
    try:
        yield
    except (HubError, ModelError) as error:
        if location.told or isinstance(error, AdapterError) or len(error.faults) > 1:
            raise
        only = error.faults[0]
        fix = _OTHER_BASE if only.fix is None else f"{only.fix}; or {_OTHER_BASE}"
        raise type(error)(only.message, where=only.where, fix=fix) from error


# -- which model class -------------------------------------------------------------------------------------------


def auto_class_of(location: Location, source: BaseSource | None = None) -> str:
    """The auto class of the models that the adapter was made for: of its task type, else of the class that it names, else
    of the base's own architecture. Raises `AdapterError` for a task type or class that nobody has."""
    if (found := class_made_for(location.adapter)) is not None:
        return found
    with model_option_named(location):
        architectures = load_config(source or base_of(location)).architectures or []
    return next((found for name in architectures if (found := auto_class_with(str(name)))), WRITES_ON.auto_class)


def load_base(
    location: Location,
    source: BaseSource,
    *,
    auto_class: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> nn.Module:
    """The bare base of the class that the adapter was made for, with as many labels as its head has, its linear layers
    stored as they were in training."""
    with model_option_named(location):
        auto_class = auto_class or auto_class_of(location, source)
        head = label_head(location, source, auto_class) if auto_class in LABELLING else None
        model = load_model(
            source,
            auto_class=auto_class,
            dtype=dtype,
            device=device,
            head=head,
            quantization=trained_storage(location, source),
            pooler=has_pooler(read_header(location.adapter / TENSORS_NAME)),
        )
    if (added := tokens_beside(location, source)) is not None:
        give_rows(model, added)
    return model


def tokens_beside(location: Location, source: BaseSource) -> AddedTokens | None:
    """The tokens that the tokenizer beside an adapter has and its base lacks; None where there are none."""
    own = location.adapter / TOKENIZER_NAME
    # a link or a pipe is refused by who opens the tokenizer; it is not read here
    if location.whole or file_fault(own, location.adapter) is not None:
        return None
    theirs = snapshot(source).folder / TOKENIZER_NAME
    # the common case, without parsing either; beside a base without a tokenizer there is nothing to compare with
    if not theirs.is_file() or own.read_bytes() == theirs.read_bytes():
        return None
    tokenizer = load_tokenizer(BaseSource(str(location.adapter), str(location.adapter), None, location.adapter))
    return added_tokens(load_tokenizer(source), tokenizer, noted_tokens(read_own(location.adapter)))


def stream_base(
    location: Location, source: BaseSource, *, auto_class: str | None = None, dtype: torch.dtype = torch.float32
) -> StreamedBase:
    """The same, plain and on the CPU, with its large weights left in their files. Raises `NotStreamed` too."""
    with model_option_named(location):
        auto_class = auto_class or auto_class_of(location, source)
        head = label_head(location, source, auto_class) if auto_class in LABELLING else None
        if trained_storage(location, source) is not None or quantization_of(load_config(source).to_dict()) is not None:
            raise NotStreamed("its weights were quantized")
        if tokens_beside(location, source) is not None:
            raise NotStreamed("it gets rows for tokens that were added")
        return open_streamed(source, auto_class=auto_class, dtype=dtype, head=head)


def trained_storage(location: Location, source: BaseSource) -> str | None:
    """How the base's linear layers are to be packed for the adapter to answer as in training; None where they were not,
    where nothing is recorded, and where the base's own files hold them packed."""
    recorded = ((read_own(location.adapter).get("base") or {}).get("fingerprint") or {}).get("dtype")
    if recorded not in PACKAGES or quantization_of(load_config(source).to_dict()) is not None:
        return None
    return str(recorded)


def label_head(location: Location, source: BaseSource, auto_class: str) -> LabelHead | None:
    """The labels of an adapter: as its own file notes them, else as many as its head has; None where both are silent."""
    noted = LabelHead.from_notes((read_own(location.adapter).get("notes") or {}).get("labels"))
    count = _num_labels(location, source, auto_class)
    if noted is not None and count in (None, len(noted.names)):
        return noted
    return None if count is None else LabelHead.unnamed(count)


def trained_type(location: Location) -> torch.dtype:
    """The type that the base was read in for training: as the run recorded it, else our own file; else float32."""
    own = (read_own(location.adapter).get("base") or {}).get("read_in")
    recorded = location.record.get("settings", {}).get("dtype", own)
    return DTYPES.get(str(recorded), torch.float32)


def _num_labels(location: Location, source: BaseSource, auto_class: str) -> int | None:
    """Rows of the last layer of a head that the adapter's file holds whole; None where it holds none."""
    meta = meta_model(source, auto_class=auto_class)
    rows = meta.config.num_labels  # type: ignore[union-attr]
    heads = structure(meta).heads
    last = [
        path
        for path, module in meta.named_modules()
        if getattr(module, "out_features", None) == rows and any(f"{path}.".startswith(f"{head}.") for head in heads)
    ]
    header = read_header(location.adapter / TENSORS_NAME)
    found = [shape[0] for key, (_, shape) in header.items() if any(key.endswith(f".{path}.weight") for path in last)]
    return found[0] if found else None
