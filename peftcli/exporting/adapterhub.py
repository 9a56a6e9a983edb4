"""An adapter for AdapterHub's library `adapters`: two files, and a trained head in two more.

    adapter_config.json      {"config": the method's, "model_class", "model_type", "name", "version": "adapters.1.3.0"}
    adapter.safetensors      tensors by the modules of that library's model classes
    model_head.safetensors   a head of labels, with head_config.json

What a method is there says its own file (`express` in `adapterhub.py` beside its `method.py`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from peftcli import folders
from peftcli.adapters.adapterhub_sites import FAMILIES, VERSION
from peftcli.adapters.base import FILE_PREFIX, Adapter, Entry
from peftcli.adapters.config import HEADS_FIELD
from peftcli.adapters.documents import CONFIG_NAME
from peftcli.adapters.foreign import ADAPTERHUB, HEAD_NAME, writer_of
from peftcli.adapters.prompts import HEAD_PREFIX
from peftcli.adapters.tensor_file import METADATA, serialise
from peftcli.errors import AdapterError
from peftcli.models.structure import hidden_size, output_embedding, structure

NAME = "tuned"
"""What the adapter is called there."""
_HEAD_CONFIG_NAME = "head_config.json"
_PREFIXES = (FILE_PREFIX, HEAD_PREFIX)


def write_folder(
    staging: folders.StagedFolder, plain: nn.Module, adapter: Adapter, base_name: str | None, where: str
) -> list[str]:
    """Writes the folder; `plain` is the base without the adapter. Returns what to know of it.

    Raises `AdapterError` for a method, a family or a part that the library does not have.
    """
    config: Any = plain.config
    writer = writer_of(ADAPTERHUB, adapter.config.name)
    if writer is None:
        raise AdapterError(
            f"AdapterHub's library has no {adapter.config.name} as it is here",
            where=where,
            fix="`peft export --to peft`",
        )
    if config.model_type not in FAMILIES:
        raise AdapterError(
            f"AdapterHub's library {VERSION} has no classes for models of the type {config.model_type}",
            where=where,
            fix="`peft export --to peft`",
        )
    expressed = writer.express(plain, adapter, NAME, where)
    head = _head(plain, adapter, where)
    about = {
        "hidden_size": hidden_size(plain), "model_class": type(plain).__name__, "model_name": base_name,
        "model_type": config.model_type, "version": f"adapters.{VERSION}",
    }  # fmt: skip
    staging.write_json(CONFIG_NAME, {"config": dict(expressed.fields), "name": NAME, **about})
    tensors = {key: tensor.detach().float().cpu().contiguous() for key, tensor in expressed.tensors.items()}
    staging.write(ADAPTERHUB.tensors_name, serialise(tensors, METADATA))
    if head:
        labels = {"label2id": dict(config.label2id), "num_labels": int(config.num_labels)}
        staging.write_json(_HEAD_CONFIG_NAME, {"config": None, "name": None, **labels, **about})
        staging.write(HEAD_NAME, serialise(head, METADATA))
    return [f"load it there by `model.load_adapter(FOLDER, set_active=True)`; its name is `{NAME}`"]


def _head(plain: nn.Module, adapter: Adapter, where: str) -> dict[str, Tensor]:
    """Tensors of the trained heads by the model's own names. Raises `AdapterError` for any other module that is trained
    whole."""
    wanted = getattr(adapter.config, HEADS_FIELD, None) or []
    # the projection onto the vocabulary may share its tensor with the embedding, which that file would change too
    heads = [head for head in structure(plain).heads if plain.get_submodule(head) is not output_embedding(plain)]
    others = [name for name in wanted if not any(head == name or head.endswith(f".{name}") for head in heads)]
    if others:
        raise AdapterError(
            f"AdapterHub's library saves heads of labels beside an adapter, and not `{others[0]}`",
            where=where,
            fix="`peft export --to peft`",
        )
    found = {}
    for entry in adapter.entries():
        name = _own_name(entry)
        if any(name.startswith(f"{head}.") for head in heads) and wanted:
            found[name] = entry.tensor.detach().float().cpu().contiguous()
    return found


def _own_name(entry: Entry) -> str:
    prefix = next((prefix for prefix in _PREFIXES if entry.key.startswith(prefix)), "")
    return entry.key.removeprefix(prefix)
