"""An adapter folder for Hugging Face PEFT alone, and whether the servers that read it can serve it.

A method whose adapters such servers know has a file `serving.py` beside its `method.py`, with `serving_notes`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftcli import folders
from peftcli.adapters.config import MethodConfig
from peftcli.adapters.documents import COMPANIONS_NAME, CONFIG_NAME, OWN_NAME, TENSORS_NAME, read_config
from peftcli.adapters.registry import method_of_pairs
from peftcli.adapters.serving_note import ServingNote, cannot_serve
from peftcli.errors import AdapterError
from peftcli.models.companions import tokenizer_files
from peftcli.models.tensor_header import tensor_header


def write_folder(staging: folders.StagedFolder, adapter: Path, config: MethodConfig) -> list[str]:
    """Copies the two files and the tokenizer byte for byte; returns what to know before serving them.

    Raises `AdapterError` for a method that the reference does not have.
    """
    odd = [name for name, value in config.beyond_peft.items() if getattr(config, name) is value]
    if odd or not config.in_peft:
        what = f"place for {', '.join(odd)}" if odd else f"method {config.name}"
        raise AdapterError(
            f"Hugging Face PEFT has no {what}",
            where=str(adapter),
            fix=f"`peft convert ADAPTER --to {method_of_pairs()}`, or `peft merge`",
        )
    for name in (CONFIG_NAME, TENSORS_NAME):
        staging.copy(adapter / name, name)
    for name, path in tokenizer_files(adapter).items():
        if name not in (OWN_NAME, COMPANIONS_NAME):
            staging.copy(path, name)
    shapes = {key: shape for key, (_, shape) in tensor_header(adapter / TENSORS_NAME).items()}
    return [note.text for note in serving_notes(read_config(adapter), config.name, shapes)]


def serving_notes(document: dict[str, Any], name: str, shapes: Mapping[str, tuple[int, ...]]) -> list[ServingNote]:
    """What stands between an adapter of the method `name` and a server of many adapters; nothing: it can be served."""
    place = f"peftcli.adapters.methods.{name}"
    if importlib.util.find_spec(place) is None or importlib.util.find_spec(f"{place}.serving") is None:
        way = f"`peft convert ADAPTER --to {method_of_pairs()}`, or merge it"
        return [cannot_serve(f"its method is {name}", way)]
    found: list[ServingNote] = importlib.import_module(f"{place}.serving").serving_notes(document, shapes)
    return found
