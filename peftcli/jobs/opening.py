"""Opening what a command is given: a run folder or an adapter folder, with its base, tokenizer and recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from peftcli.adapters.layers import unwrapped
from peftcli.adapters.reading import load
from peftcli.adapters.surgery import adapter_of, disabled
from peftcli.adapters.token_rows import rows_not_brought
from peftcli.errors import AdapterError, RecipeError
from peftcli.evaluation.config import GenerationConfig
from peftcli.evaluation.memory import memory_errors
from peftcli.jobs.adapter_base import auto_class_of, base_of, load_base, trained_storage, trained_type
from peftcli.models.added_tokens import rows_given
from peftcli.models.auto_class import LABELLING
from peftcli.models.heads import settle_padding
from peftcli.models.new_heads import new_head_keys
from peftcli.models.own_files import is_there
from peftcli.models.source import BaseSource
from peftcli.models.structure import input_embedding
from peftcli.models.tokenizer import load_tokenizer
from peftcli.models.weights import weight_view
from peftcli.planning.machine import resolve_device, resolve_threads
from peftcli.recipe import LoadedRecipe, generation_from, load_recipe
from peftcli.runs.as_written import require_as_written
from peftcli.runs.locating import Location, locate
from peftcli.runs.own_files import RECIPE_NAME
from peftcli.runs.writing_notes import read_notes

__all__ = [
    "Location", "OpenModel", "Writing", "adapter_tokenizer", "auto_class_of", "locate", "open_adapter", "run_recipe",
    "writing_of",
]  # fmt: skip


@dataclass(frozen=True)
class OpenModel:
    """A model with its adapter attached, or a whole one, ready to answer."""

    location: Location
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    source: BaseSource
    dtype: torch.dtype
    device: str
    auto_class: str
    base: nn.Module | None = None
    """The base of a whole model, where it is wanted and known."""

    @property
    def has_base(self) -> bool:
        """Whether there is a base to compare with: always, but for a whole model without its own."""
        return self.base is not None or not self.location.whole

    @property
    def made_for(self) -> str:
        """The model's class, as the start of a message."""
        name = type(self.model).__name__
        return f"the model is a {name}" if self.location.whole else f"the adapter is made for {name}"

    @contextmanager
    def as_base(self) -> Iterator[nn.Module]:
        """The model that answers as the base does inside the block: this one without its adapter, or another."""
        if self.base is not None:
            yield self.base
            return
        with disabled(self.model):
            yield self.model


def run_recipe(location: Location, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe of the run that an adapter lies in. Raises `RecipeError` for a bare adapter or a whole model."""
    if location.run is None or not (location.run / RECIPE_NAME).is_file():
        raise RecipeError(
            f"a bare {location.noun} has no recipe", where=str(location.adapter), fix="name a recipe as well"
        )
    return load_recipe(location.run / RECIPE_NAME, overrides)


def open_adapter(
    path: str | Path,
    *,
    base: str | None = None,
    device: str = "auto",
    threads: int | str = "auto",
    dtype: torch.dtype | None = None,
    read: Callable[..., nn.Module] = load_base,
) -> OpenModel:
    """Loads base, tokenizer and adapter for use (not for training).

    The base's type is that of training where it is recorded, else float32; `dtype` is another one, but for a base that is
    packed as it is read: its numbers hang on the type that they are read in. `read`: what gives the bare base, called as
    `load_base` is. Raises every error of loading.
    """
    location = locate(path, base=base)
    where = settle(device, threads)
    source = base_of(location)
    if dtype is None or trained_storage(location, source) is not None:
        dtype = trained_type(location)
    auto_class = auto_class_of(location, source)
    with memory_errors("loading the base and its adapter", "free memory on the device, or use a smaller base"):
        model = read(location, source, auto_class=auto_class, dtype=dtype, device=where)
        load(model, location.adapter)
    _require_known_head(model, location)
    tokenizer = adapter_tokenizer(location, source)
    if auto_class in LABELLING:
        settle_padding(model, tokenizer)
    require_rows(model, tokenizer, location, source)
    require_as_written(location, source)
    return OpenModel(location, model, tokenizer, source, dtype, where, auto_class)


def settle(device: str = "auto", threads: int | str = "auto") -> str:
    """Takes as many threads as are asked for; returns the device that is meant."""
    torch.set_num_threads(resolve_threads(threads))
    return resolve_device(device)


def require_rows(model: nn.Module, tokenizer: PreTrainedTokenizerBase, location: Location, source: BaseSource) -> None:
    """Tokens were added to the tokenizer beside the adapter, and neither the adapter nor this base has rows for them.

    Some bases come with a tokenizer that has more tokens than they embed; that alone is no fault.
    """
    embedding = input_embedding(model)
    rows = None if embedding is None else weight_view(unwrapped(embedding)).shape[0]
    own = 0 if embedding is None or location.whole else rows_given(unwrapped(embedding))
    if rows is not None and own and not rows_not_brought(model, range(own, rows)):
        return
    if rows is None or (not own and (len(tokenizer) <= rows or len(tokenizer) <= len(load_tokenizer(source)))):
        return
    raise AdapterError(
        f"the tokenizer beside the {location.noun} has {len(tokenizer)} tokens, the base embeds {own or rows}",
        where=str(location.adapter),
        fix="give the base that the tokens were added to (--model), or put the base's own tokenizer in its place",
    )


def _require_known_head(model: nn.Module, location: Location) -> None:
    """A head that neither the base nor the adapter holds was drawn at random: its answers mean nothing."""
    held = {entry.key for entry in adapter_of(model).entries()}
    unknown = [key for key in new_head_keys(model) if not any(name.endswith(f".{key}") for name in held)]
    if unknown:
        raise AdapterError(
            f"neither the base nor the adapter holds the head `{unknown[0]}`",
            where=str(location.adapter),
            fix="name the base that has it: --model BASE",
        )


def adapter_tokenizer(location: Location, source: BaseSource) -> PreTrainedTokenizerBase:
    """The tokenizer and template frozen beside the adapter; the base's where the folder holds none."""
    if is_there(location.adapter / "tokenizer.json"):
        frozen = BaseSource(str(location.adapter), str(location.adapter), None, location.adapter)
        return load_tokenizer(frozen)
    return load_tokenizer(source)


@dataclass(frozen=True)
class Writing:
    """How text is to be written: the recipe's `generation`, the seed of its draws, and settings without effect."""

    config: GenerationConfig
    seed: int
    warnings: tuple[str, ...]


def writing_of(location: Location, overrides: Sequence[str] = ()) -> Writing:
    """The run's `generation` section and `seed`, with `--set` over them; for a bare adapter or a model that was merged from
    one, what it notes of them, and the defaults where nothing is noted.

    Raises `RecipeError` for an override of any other key, `AdapterError` for notes that are damaged.
    """
    wrong = [text for text in overrides if not text.startswith(("generation.", "seed="))]
    if wrong:
        raise RecipeError(f"--set {wrong[0]} has no effect here", fix="only `seed` and generation.* keys do")
    if location.run is not None and (location.run / RECIPE_NAME).is_file():
        recipe = load_recipe(location.run / RECIPE_NAME, overrides).recipe
        config, seed = recipe.generation, recipe.seed
    else:
        notes = read_notes(location.adapter)
        config, seed = generation_from(overrides, notes.generation.stated(), notes.seed)
    return Writing(config, seed, tuple(config.idle_settings()))
