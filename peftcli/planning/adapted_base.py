"""The base of a run as it will be adapted, without its weights: structure, tokenizer, task and method that fit together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from peftcli.adapters.config import MethodConfig
from peftcli.adapters.starting import StartAdapter, read_start
from peftcli.data.prepare import PreparedData
from peftcli.models.added_tokens import AddedTokens, give_rows
from peftcli.models.dequantized import storage_name
from peftcli.models.heads import LabelHead
from peftcli.models.skeleton import meta_model
from peftcli.models.source import BaseSource, resolve_base
from peftcli.models.tokenizer import load_tokenizer
from peftcli.planning.counts import Counts, attached_counts, fitting, require_same_layers
from peftcli.planning.labels import known_to, label_head, trained_with_head
from peftcli.planning.tokens import new_tokens, trained_with_tokens
from peftcli.recipe import LoadedRecipe, recipe_template
from peftcli.tasks.base import Task
from peftcli.training.seeding import stream_seed


@dataclass(frozen=True)
class AdaptedBase:
    """What is known of a base before its weights are read."""

    source: BaseSource
    skeleton: nn.Module
    """The model on the meta device, with rows for new tokens."""
    quantization: str | None
    """How its linear layers are packed; None: plain numbers."""
    tokenizer: PreTrainedTokenizerBase
    task: Task
    """Under the recipe's options, and told what the base and the adapter to start from say of labels."""
    method: MethodConfig
    """The recipe's method as it is attached, with what it trains beside its layers."""
    start: StartAdapter | None
    added: AddedTokens | None
    known_counts: Counts | None
    """What is trained; None while a task does not know its labels yet."""
    head: LabelHead | None = None

    @property
    def counts(self) -> Counts:
        """What is trained."""
        assert self.known_counts is not None, "a task that learns labels has a head"
        return self.known_counts


def open_base(loaded: LoadedRecipe, task: Task) -> AdaptedBase:
    """Reads configuration and tokenizer of the recipe's base, and lays the method out on it."""
    recipe = loaded.recipe
    source = resolve_base(recipe.model.base, folder=loaded.folder, revision=recipe.model.revision)
    skeleton = meta_model(source, auto_class=task.auto_class, quantization=recipe.model.quantization)
    quantization = storage_name(skeleton)
    method = trained_with_head(recipe.method, task, skeleton)
    start = None if recipe.model.init_adapter is None else fitting(read_start(recipe.model.init_adapter), loaded, task)
    task = known_to(task, source, start)
    # what an adapter or new tokens make of the base is known only with the tokenizer; all else is told before it is read
    plain = start is None and not recipe.model.add_tokens
    counts = attached_counts(skeleton, method, task, start, recipe.data) if plain else None
    tokenizer = load_tokenizer(
        (start.tokenizer if start is not None else None) or source,
        chat_template=recipe_template(loaded),
        chat_template_kwargs=recipe.model.chat_template_kwargs,
    )
    added = None if plain else new_tokens(loaded, tokenizer, source, start)
    if added is not None:
        give_rows(skeleton, added)
        # the adapter to start from names its tables itself
        method = method if start is not None else trained_with_tokens(method, skeleton, added)
    if start is not None and loaded.claims:
        require_same_layers(loaded, skeleton, method, start)
    if counts is None and not task.learns_labels:
        counts = attached_counts(skeleton, method, task, start, recipe.data)
    return AdaptedBase(source, skeleton, quantization, tokenizer, task, method, start, added, counts)


def with_labels(base: AdaptedBase, loaded: LoadedRecipe, data: PreparedData) -> AdaptedBase:
    """The base with a head for the labels of the data; as it is for a task without labels."""
    recipe = loaded.recipe
    head = label_head(base.task, data, base.source, stream_seed(recipe.seed, "head"), base.start)
    if head is None:
        return base
    task = base.task.with_head(head, data.train)
    # laid out anew: how many labels there are is in the shape of the head
    skeleton = meta_model(base.source, auto_class=task.auto_class, quantization=recipe.model.quantization, head=head)
    if base.added is not None:
        give_rows(skeleton, base.added)
    counts = attached_counts(skeleton, base.method, task, base.start, recipe.data)
    return replace(base, task=task, skeleton=skeleton, head=head, known_counts=counts)
