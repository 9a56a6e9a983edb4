"""Training that goes on from an adapter: the method is built as the adapter's files have it, and takes their values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from peftcli.adapters.base import Adapter, Summary
from peftcli.adapters.config import HEADS_FIELD, MethodConfig
from peftcli.adapters.documents import (
    TENSORS_NAME,
    AdapterDocuments,
    noted_tokens,
    read_config,
    read_documents,
    read_own,
)
from peftcli.adapters.reading import AdapterTensors, fill, lay_out, require_base
from peftcli.adapters.sources import AdapterSource, resolve_adapter
from peftcli.adapters.surgery import build, detach, summary
from peftcli.errors import AdapterError
from peftcli.models.auto_class import CLASS_OF_TASK_TYPE, auto_class_with
from peftcli.models.heads import LabelHead
from peftcli.models.own_files import is_there
from peftcli.models.source import BaseSource

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class StartAdapter:
    """The adapter that training goes on from."""

    source: AdapterSource
    documents: AdapterDocuments
    hashes: dict[str, str]
    """Name -> SHA-256 of each file that is read of it."""

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.source.folder

    @property
    def labels(self) -> LabelHead | None:
        """The labels that its head gives, where its own file names them."""
        return LabelHead.from_notes((self.documents.own.get("notes") or {}).get("labels"))

    @property
    def added_tokens(self) -> list[str]:
        """The tokens that were added to its base when it was trained, where its own file names them."""
        return noted_tokens(self.documents.own)

    @property
    def tokenizer(self) -> BaseSource | None:
        """The tokenizer frozen beside it; None where there is none."""
        if not is_there(self.folder / _TOKENIZER):
            return None
        return BaseSource(str(self.folder), str(self.folder), None, self.folder)

    def lay_out(self, model: nn.Module, method: MethodConfig) -> Adapter:
        """Builds `method`, the adapter's own with heads that a task adds, for its tensors; on the meta device too."""
        return self._laid_out(model, method)[0]

    def put_on(self, model: nn.Module, method: MethodConfig) -> Summary:
        """The adapter on a base, every tensor with its value and free to be trained.

        Raises `AdapterError` for another base than it was trained on, and for what does not fit; the model is then
        untouched.
        """
        require_base(model, self.documents.own, self.folder)
        adapter, file = self._laid_out(model, method)
        try:
            fill(adapter, file, self._parts, heads=self._added_heads(method))
            adapter.set_trainable(True)
        except BaseException:
            detach(model)
            raise
        return summary(model)

    @property
    def _parts(self) -> AdapterTensors:
        return AdapterTensors(self.folder / TENSORS_NAME, None, None)

    def _laid_out(self, model: nn.Module, method: MethodConfig) -> tuple[Adapter, Any]:
        heads = self._added_heads(method)
        return lay_out(model, method, self._parts, kept=self.documents.kept, heads=heads)

    def _added_heads(self, method: MethodConfig) -> list[str]:
        own = _heads(self.documents.config)
        return [head for head in _heads(method) if head not in own]


def _heads(method: MethodConfig) -> list[str]:
    return list(getattr(method, HEADS_FIELD, None) or [])


def read_start(name: str) -> StartAdapter:
    """The adapter under `model.init_adapter`, fetched where it is of the Hub. Raises `AdapterError` or `HubError`."""
    source = resolve_adapter(name)
    return StartAdapter(source, read_documents(source.folder), source.files())


def laid_out(model: nn.Module, method: MethodConfig, start: StartAdapter | None) -> Adapter:
    """A method on a model before its tensors have values, where training starts anew or from an adapter."""
    return build(model, method) if start is None else start.lay_out(model, method)


def class_made_for(folder: Path) -> str | None:
    """The auto class of the models that an adapter was made for: of its task type, else of the class that it names; None
    where it names neither. Raises `AdapterError` for a task type or class that nobody has."""
    document = read_config(folder)
    task_type = document.get("task_type")
    if task_type is not None:
        if task_type in CLASS_OF_TASK_TYPE:
            return CLASS_OF_TASK_TYPE[task_type]
        raise AdapterError(
            f"`task_type` is {str(task_type)[:40]!r}",
            where=str(folder),
            fix=f"one of {', '.join(CLASS_OF_TASK_TYPE)}",
        )
    named = (document.get("auto_mapping") or {}).get("base_model_class") or read_own(folder).get("model_class")
    if not isinstance(named, str):
        return None
    if (found := auto_class_with(named)) is None:
        raise AdapterError(f"the adapter was made for a {named}, which transformers does not have", where=str(folder))
    return found
