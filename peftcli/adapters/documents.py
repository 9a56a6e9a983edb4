"""The documents of an adapter folder, read and checked; free of torch, so that a recipe can ask what an adapter is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli import files
from peftcli.adapters.config import MethodConfig
from peftcli.adapters.registry import config_class_of_type
from peftcli.errors import AdapterError
from peftcli.models.own_files import file_fault, is_there

CONFIG_NAME = "adapter_config.json"
"""The reference's configuration file of an adapter."""
TENSORS_NAME = "adapter_model.safetensors"
"""The reference's file of an adapter's tensors."""
OWN_NAME = "peftcli.json"
"""What the reference's configuration has no place for: base fingerprint, method fields of our own, notes."""
COMPANIONS_NAME = "peftcli_encoder.safetensors"
"""Tensors that training needs and the reference does not keep, such as a prompt encoder."""
FORMAT = 1
"""Version of `peftcli.json`: another one is refused, since its fields may mean something else."""
ADDED_TOKENS = "added_tokens"
"""The note of the tokens that were added to the base."""
_JSON_LIMIT_BYTES = 4 << 20


@dataclass(frozen=True)
class AdapterDocuments:
    """What the two documents of an adapter in our format say, before any tensor is read."""

    folder: Path
    config: MethodConfig
    kept: dict[str, Any]
    """Fields of `adapter_config.json` that the configuration has no use for, to be written again."""
    own: dict[str, Any]
    """Our own file beside it; empty where there is none."""


def read_documents(folder: Path) -> AdapterDocuments:
    """Both documents of an adapter. Raises `AdapterError` for what cannot be read, or asks for what is not here."""
    document = read_config(folder)
    where = str(folder / CONFIG_NAME)
    config, kept = config_class_of_type(document["peft_type"], where=where).from_file(document, where=where)
    own = read_own(folder)
    return AdapterDocuments(folder, _with_own_fields(config, own, folder), kept, own)


def read_document(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` as a mapping, whoever wrote it. Raises `AdapterError`."""
    if not folder.exists():
        raise AdapterError("no such adapter folder", where=str(folder), fix="give the folder that holds the adapter")
    path = folder / CONFIG_NAME
    reason = file_fault(path, folder)
    if reason is not None:
        nested = folder / "adapter" / CONFIG_NAME
        fix = f"did you mean {nested.parent}?" if nested.is_file() else "give the folder that holds the adapter"
        raise AdapterError(f"{CONFIG_NAME} {reason}", where=str(folder), fix=fix)
    return _read_json(path)


def read_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` of an adapter in our format: it has a `peft_type`. Raises `AdapterError`."""
    document = read_document(folder)
    if not isinstance(document.get("peft_type"), str):
        # a circle: what reads other tools' files ends here
        from peftcli.adapters.foreign import library_of

        library = library_of(document)
        # the commonest mistake has its own remedy: the folder of another tool
        fix = "the file is damaged" if library is None else "`peft convert ADAPTER --to peft --output DIR` it first"
        what = "`peft_type` is missing or not a string" if library is None else f"this is an adapter of {library.name}"
        raise AdapterError(what, where=str(folder / CONFIG_NAME), fix=fix)
    return document


def read_own(folder: Path) -> dict[str, Any]:
    """Our own file beside the adapter; empty where there is none (an adapter of the reference)."""
    path = folder / OWN_NAME
    if not is_there(path):
        return {}
    if (fault := file_fault(path, folder)) is not None:
        raise AdapterError(f"{OWN_NAME} {fault}", where=str(path), fix="copy the file itself")
    document = _read_json(path)
    if document.get("format") != FORMAT:
        raise AdapterError(
            f"{OWN_NAME} has format {document.get('format')!r}; this peftcli reads {FORMAT}",
            where=str(path),
            fix="use a newer peftcli",
        )
    if not all(isinstance(document.get(part) or {}, dict) for part in ("base", "fields", "notes")):
        raise AdapterError(f"{OWN_NAME} is damaged", where=str(path), fix="get it again")
    return document


def noted_tokens(own: Mapping[str, Any]) -> list[str]:
    """The tokens that were added to the base for an adapter, as our own file notes them."""
    found = (own.get("notes") or {}).get(ADDED_TOKENS)
    return [str(token) for token in found] if isinstance(found, list) else []


def _read_json(path: Path) -> dict[str, Any]:
    try:
        # `parse_constant`: Python reads NaN and Infinity, which JSON has not
        document = json.loads(files.read_bounded(path, limit_bytes=_JSON_LIMIT_BYTES), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            f"{path.name} is not valid JSON: {error}"[:200], where=str(path), fix="get it again"
        ) from error
    if not isinstance(document, dict):
        raise AdapterError(f"{path.name} is not a JSON object", where=str(path), fix="get it again")
    return document


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _with_own_fields(config: MethodConfig, own: Mapping[str, Any], folder: Path) -> MethodConfig:
    fields = {key: value for key, value in (own.get("fields") or {}).items() if key in config.recipe_only}
    if not fields:
        return config
    try:
        # the file's own fields stand as they were read, also beyond what a recipe may say
        known = {key: value for key, value in type(config)().model_dump().items() if key not in fields}
        checked = type(config).model_validate({**known, **fields})
        return config.model_copy(update={key: getattr(checked, key) for key in fields})
    except ValueError as error:
        raise AdapterError(
            f"{OWN_NAME} has invalid fields", where=str(folder / OWN_NAME), fix="get it again"
        ) from error
