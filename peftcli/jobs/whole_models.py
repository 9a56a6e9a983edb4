"""Models that need no adapter to answer: what `peft merge` wrote, or any model folder as it was published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from peftcli.adapters.documents import FORMAT, read_own
from peftcli.adapters.reading import require_base
from peftcli.errors import HubError, MemoryLimitError, ModelError, RecipeError
from peftcli.evaluation.memory import memory_errors
from peftcli.jobs.adapter_base import base_of, model_option_named
from peftcli.jobs.opening import OpenModel, open_adapter, require_rows, settle
from peftcli.models.auto_class import LABELLING, WRITING, auto_class_with
from peftcli.models.base_config import load_config
from peftcli.models.companions import same_vocabulary
from peftcli.models.heads import LabelHead
from peftcli.models.load import load_model
from peftcli.models.source import BaseSource, resolve_base
from peftcli.models.tokenizer import load_tokenizer
from peftcli.planning.fit import total_memory_bytes
from peftcli.planning.sizes import size_text
from peftcli.runs.locating import Location, holds_a_model, locate_model

_OTHER_COPY = "--model BASE names another copy"


def open_to_answer(path: str | Path, *, base: str | None = None, with_base: bool = False) -> OpenModel:
    """Opens a run, an adapter or a whole model.

    `base`: where the base is. `with_base`: its answers are wanted too; an adapter's base is at hand anyway, that of a
    whole model is loaded beside it. Raises every error of loading; `RecipeError` for a base that nobody asked of.
    """
    path = Path(path).expanduser()
    if not holds_a_model(path):
        return open_adapter(path, base=base)
    if base is not None and not with_base:
        raise RecipeError(f"--model {base} has no effect: {path} is a whole model", fix="add --base to see both")
    opened = _open_whole(locate_model(path, base=base))
    return _with_base(opened) if with_base else opened


def open_to_score(path: str | Path, *, base: str | None, say: Callable[[str], None]) -> OpenModel:
    """The same with the base of a whole model where one is named or recorded; a recorded one that is gone gets a warning."""
    path = Path(path).expanduser()
    if not holds_a_model(path):
        return open_adapter(path, base=base)
    opened = _open_whole(locate_model(path, base=base))
    return opened if opened.location.base is None else _with_base(opened, say=say)


def _open_whole(location: Location) -> OpenModel:
    device, source = settle(), resolve_base(str(location.adapter.absolute()), folder=Path.cwd())
    architectures = load_config(source).architectures or []
    # a folder whose classes are unknown is opened as a model that writes, the commonest kind
    auto_class = next((found for name in architectures if (found := auto_class_with(str(name)))), WRITING[0])
    with memory_errors("loading the model", "free memory on the device, or use a smaller model"):
        model = load_model(source, auto_class=auto_class, dtype=torch.float32, device=device)
    return OpenModel(location, model, load_tokenizer(source), source, torch.float32, device, auto_class)


def _with_base(opened: OpenModel, *, say: Callable[[str], None] | None = None) -> OpenModel:
    """The base beside its model, checked. `say` gets a warning about a recorded base that is gone;
    without it that is an error."""
    location = opened.location
    try:
        _require_room_for_two(opened)
        with model_option_named(location):
            source = base_of(location)
            tokenizer, base = load_tokenizer(source), _load(opened, source)
    except (HubError, ModelError, MemoryLimitError) as error:
        if say is None or location.told:
            raise
        fix = f"; {_OTHER_COPY}" if not isinstance(error, MemoryLimitError) else ""
        say(f"warning: the model is scored without its base: {error.message}{fix}")
        return opened
    _require_its_base(opened, base, tokenizer, source)
    return replace(opened, base=base)


def _require_room_for_two(opened: OpenModel) -> None:
    """Raises `MemoryLimitError` where the base beside the model cannot fit, before the system ends who asked for it."""
    needed = 2 * sum(parameter.numel() * parameter.element_size() for parameter in opened.model.parameters())
    there = total_memory_bytes(opened.device)
    if needed > there:
        raise MemoryLimitError(
            f"the model and its base need {size_text(needed)} beside each other, there are {size_text(there)}",
            where=str(opened.location.adapter),
            fix="ask them one after the other: without --base, then the base's own folder",
        )


def _load(opened: OpenModel, source: BaseSource) -> nn.Module:
    with memory_errors("loading the base beside the model", "free memory on the device"):
        head = None
        if opened.auto_class in LABELLING:
            noted = LabelHead.from_notes((read_own(opened.location.adapter).get("notes") or {}).get("labels"))
            head = noted or LabelHead.of_config(opened.model.config)
        return load_model(source, auto_class=opened.auto_class, dtype=opened.dtype, device=opened.device, head=head)


def _require_its_base(
    opened: OpenModel, base: nn.Module, tokenizer: PreTrainedTokenizerBase, source: BaseSource
) -> None:
    """By the fingerprint that the merge noted; where there is none, ids must at least mean the same to both."""
    location = opened.location
    own = read_own(location.adapter)
    require_base(base, own, location.adapter, what="merged model")
    # before anything is scored: ids beyond the base's rows would fail in the middle
    require_rows(base, opened.tokenizer, location, source)
    if (own.get("base") or {}).get("fingerprint") is None and not same_vocabulary(tokenizer, opened.tokenizer):
        raise ModelError(
            f"{source.name} has a vocabulary that differs from the model's: it is not its base",
            where=str(location.adapter),
            fix="name the base that it was made from: --model BASE",
        )


# -- what a merge notes ------------------------------------------------------------------------------------------


def origin_document(opened: OpenModel) -> dict[str, Any] | None:
    """Our own file of a merged model: the base, the method, and how prompts looked in training, as the adapter's has
    it; None for an adapter of which nothing but a name is known."""
    own = read_own(opened.location.adapter)
    kept = {key: own[key] for key in ("base", "notes") if own.get(key)}
    return {"format": FORMAT, "merged": own.get("method"), **kept} if kept else None
