"""The plan: every fact that can be known before a weight is loaded, and what `train` then follows to the letter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from peftcli.adapters.config import MethodConfig
from peftcli.adapters.prompt_sites import learned_positions
from peftcli.adapters.starting import StartAdapter, laid_out, read_start
from peftcli.data.cache import default_cache_dir
from peftcli.data.chat_variables import chat_mode
from peftcli.data.encode.base import Encoding
from peftcli.data.order import BatchOrder
from peftcli.data.prepare import PreparedData, prepare
from peftcli.data.store import TokenStore
from peftcli.data.stream_order import StreamOrder
from peftcli.data.truncation import read_lengths
from peftcli.errors import DataError, MemoryLimitError, RecipeError
from peftcli.evaluation.generate import context_length
from peftcli.models.added_tokens import AddedTokens, give_rows
from peftcli.models.companions import check_vocabulary
from peftcli.models.dequantized import storage_name
from peftcli.models.heads import LabelHead
from peftcli.models.load import DTYPES
from peftcli.models.skeleton import meta_model
from peftcli.models.source import BaseSource, resolve_base
from peftcli.models.structure import structure
from peftcli.models.tokenizer import load_tokenizer
from peftcli.models.weights import stored_bytes, weight_view
from peftcli.planning.counts import Counts, attached_counts, fitting, require_same_layers
from peftcli.planning.doubts import doubts_of, idle_kernels
from peftcli.planning.fit import Needs, choose, longest_rows, remedies
from peftcli.planning.labels import known_to, label_head, trained_with_head
from peftcli.planning.machine import processes_here, resolve_device, resolve_precision
from peftcli.planning.memory import MemoryEstimate, Stored
from peftcli.planning.padding import Padding, idle_packing, padding_of
from peftcli.planning.resolved import Resolved, resolve, usable_kernels
from peftcli.planning.sizes import size_text
from peftcli.planning.step_memory import Rehearsal
from peftcli.planning.tokens import new_tokens, trained_with_tokens
from peftcli.recipe import LoadedRecipe, recipe_template
from peftcli.recipe.surroundings import require_packages
from peftcli.tasks.base import Task
from peftcli.training.compiled_blocks import require_compiler
from peftcli.training.optimizers import require_device
from peftcli.training.seeding import stream_seed


@dataclass(frozen=True)
class Plan:
    """Facts before the run; `to_dict` is its JSON, `render` its text."""

    name: str
    base: str
    method: str
    task: str
    hidden_size: int
    num_layers: int
    targets: tuple[str, ...]
    trainable: int
    total: int
    resolved: Resolved
    data: dict[str, Any]
    held_out: bool
    """Whether the validation rows are split off the training data."""
    tokens_per_epoch: int
    trained_tokens_per_epoch: int
    memory: MemoryEstimate
    adapter_disk_bytes: int
    checkpoint_disk_bytes: int
    chosen: tuple[str, ...]
    """What each `auto` of memory took, and why."""
    remedies: tuple[str, ...]
    """Where the run does not fit the memory that it is planned for: the changes that would make it, cheapest first."""
    budget_bytes: int | None
    """The memory that the run is planned for; None: nobody asked, and the device has enough."""
    warnings: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Path of each layer that the targets could mean and that is not adapted -> why."""
    padding: Padding | None = None
    """Shares of padding, unpacked and packed; None where the rows are not known beforehand."""
    chat: str = ""
    """The mode in which conversations are written: variables of the chat template, and the date in it."""

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints, as plain data."""
        resolved = {**vars(self.resolved), "kernels": list(self.resolved.kernels)}
        facts = {key: value for key, value in vars(self).items() if key not in ("resolved", "memory", "warnings")}
        facts["targets"] = list(self.targets)
        facts["left_out"] = dict(self.left_out)
        facts["padding"] = None if self.padding is None else vars(self.padding)
        facts["chosen"], facts["remedies"] = list(self.chosen), list(self.remedies)
        return {**facts, **resolved, "memory": self.memory.to_dict(), "warnings": list(self.warnings)}


@dataclass(frozen=True)
class Prepared:
    """What planning has opened on the way and training goes on with: tokenizer, token store, order of rows."""

    loaded: LoadedRecipe
    plan: Plan
    source: BaseSource
    tokenizer: PreTrainedTokenizerBase
    data: PreparedData
    order: BatchOrder | StreamOrder
    task: Task
    """Under the recipe's options, and told the labels of the data."""
    method: MethodConfig
    """The recipe's method as it is attached, the head of a task with labels trained beside it."""
    head: LabelHead | None = None
    """The labels that the model gives; None for a task without labels."""
    start: StartAdapter | None = None
    """The adapter that training goes on from."""
    added: AddedTokens | None = None
    """Tokens that the base lacks and gets rows for."""

    @property
    def tokenizer_source(self) -> BaseSource:
        """Where the tokenizer was read from: the base, or the adapter that training goes on from."""
        return (self.start.tokenizer if self.start is not None else None) or self.source


def make_plan(loaded: LoadedRecipe, *, device_memory: int | None = None) -> Plan:
    """The plan of a recipe. Loads no weights. Raises the same errors as `train` would, as early as possible."""
    return prepare_run(loaded, device_memory=device_memory, planning=True).plan


def prepare_run(
    loaded: LoadedRecipe,
    *,
    device_memory: int | None = None,
    planning: bool = False,
    progress: Callable[..., Any] | None = None,
) -> Prepared:
    """Resolves base, device and data, and plans; everything but the weights.

    `device_memory`: of a card that need not be here; `device: auto` is then a GPU. `planning`: no run follows, so what
    only a run needs need not be installed.
    """
    recipe = loaded.recipe
    task = recipe.learns()
    elsewhere = device_memory is not None and recipe.device in ("auto", "cuda")
    device = "cuda" if elsewhere else resolve_device(recipe.device)
    require_device(recipe.training.optimizer, device=device)
    lacking = require_packages(loaded, planning=planning)
    if recipe.training.compile and not elsewhere:
        require_compiler(device)
    precision, dtype = resolve_precision(recipe.training.precision, recipe.model.dtype, device)
    source = resolve_base(recipe.model.base, folder=loaded.folder, revision=recipe.model.revision)
    skeleton = meta_model(source, auto_class=task.auto_class, quantization=recipe.model.quantization)
    quantization = storage_name(skeleton)
    method = trained_with_head(recipe.method, task, skeleton)
    start = None if recipe.model.init_adapter is None else fitting(read_start(recipe.model.init_adapter), loaded, task)
    task = known_to(task, source, start)
    # what an adapter or new tokens make of the base is known only with the tokenizer
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
        method = method if start is not None else trained_with_tokens(method, skeleton, added)
    if start is not None and loaded.claims:
        require_same_layers(loaded, skeleton, method, start)
    if counts is None and not task.learns_labels:
        counts = attached_counts(skeleton, method, task, start, recipe.data)
    chats = chat_mode(tokenizer)
    not_embedded = check_vocabulary(skeleton, tokenizer, source.location)
    data = prepare(
        recipe.data,
        tokenizer=tokenizer,
        folder=loaded.folder,
        seed=recipe.seed,
        cache_dir=default_cache_dir(),
        progress=progress,
        stop_on_failures=False,
        context=context_length(skeleton),
        encoding=task.encoding,
    )
    head = label_head(task, data, source, stream_seed(recipe.seed, "head"), start)
    if head is not None:
        task = task.with_head(head, data.train)
        skeleton = meta_model(source, auto_class=task.auto_class, quantization=recipe.model.quantization, head=head)
        if added is not None:
            give_rows(skeleton, added)
        counts = attached_counts(skeleton, method, task, start, recipe.data)
    assert counts is not None, "a task that learns labels has a head"
    data = replace(
        data,
        train=task.arrange(data.train),
        validation=None if data.validation is None else task.arrange(data.validation),
    )
    _check_positions(loaded, skeleton, counts, data, task.encoding)
    check = partial(_check_tokens, tokenizer, not_embedded)
    for store in (data.train, data.validation):
        check(store)
    order = data.order(recipe.training.batch_size, recipe.seed, max_steps=recipe.training.max_steps, check=check)
    needs = _needs(
        loaded, method, start, skeleton, task, data, tokenizer, device, dtype, packed=quantization is not None
    )
    choice = choose(
        needs, recipe.training, device=device, device_memory=device_memory, processes=processes_here(recipe)
    )
    resolved = resolve(loaded, counts, order, device, precision, dtype, choice, quantization)
    plan = Plan(
        name=loaded.name,
        base=recipe.model.base,
        method=recipe.method.name,
        task=recipe.task,
        hidden_size=counts.hidden_size,
        num_layers=counts.num_layers,
        targets=counts.targets,
        trainable=counts.trainable,
        total=counts.total,
        resolved=resolved,
        data=data.facts.to_dict(),
        held_out=data.validation is not None and not recipe.data.validation_sources,
        tokens_per_epoch=int(data.train.lengths.sum()),
        trained_tokens_per_epoch=int(data.train.trained.sum()),
        memory=choice.memory,
        adapter_disk_bytes=counts.trainable * 4,
        checkpoint_disk_bytes=counts.trainable * 4 * 3 * (recipe.checkpoint.keep + 1),
        chosen=choice.notes,
        remedies=() if choice.fits else remedies(needs, choice),
        budget_bytes=choice.budget_bytes,
        warnings=(
            *loaded.warnings,
            *lacking,
            *doubts_of(loaded, skeleton, resolved, counts.added_positions, validated=data.validation is not None),
            *idle_kernels(recipe.training.kernels, usable_kernels(recipe.training, counts)),
            *counts.notes,
            *data.warnings,
            *idle_packing(recipe.data, data.train.lengths),
            *(chats.warnings if data.facts.holds_chats else ()),
        ),
        left_out=counts.left_out,
        padding=padding_of(recipe.data, data.train.lengths, order, resolved.micro_batch_size)
        if task.packs_rows
        else None,
        chat=chats.text if data.facts.holds_chats else "",
    )
    return Prepared(loaded, plan, source, tokenizer, data, order, task, method, head, start, added)


def unfit(plan: Plan) -> MemoryLimitError | None:
    """The error of a plan that needs more than the memory it was made for; None where it fits."""
    if not plan.remedies or plan.budget_bytes is None:
        return None
    return MemoryLimitError(
        f"the run needs about {size_text(plan.memory.peak_bytes)} (estimated), more than the "
        f"{size_text(plan.budget_bytes)} there are",
        fix="; or ".join(plan.remedies),
    )


def _check_positions(
    loaded: LoadedRecipe, skeleton: nn.Module, counts: Counts, data: PreparedData, encoding: Encoding
) -> None:
    """Positions that are learned one by one end somewhere: a longer row cannot be read."""
    limit, config = learned_positions(skeleton), loaded.recipe.data
    if limit is None:
        return
    stores = [store for store in (data.train, data.validation) if store is not None and len(store)]
    # what a stream will bring is not known, only how it is cut
    longest = config.max_length if config.streaming else max(_longest(store, encoding) for store in stores)
    added = counts.added_positions
    if longest + added > limit:
        virtual = f" and {added} virtual tokens" if added else ""
        raise RecipeError(
            f"the longest row has {longest} tokens: these{virtual} need more than the base's {limit} positions",
            where="data.max_length",
            fix=f"data.max_length: {limit - added}" if added < limit else "fewer virtual tokens",
        )


def _longest(store: TokenStore, encoding: Encoding) -> int:
    """Tokens of the longest run that the model reads at once."""
    return int(read_lengths(store.columns, store.index, encoding.alternatives, apart=encoding.apart).max())


def _check_tokens(tokenizer: PreTrainedTokenizerBase, not_embedded: frozenset[int], store: TokenStore | None) -> None:
    """Places for images or sound that a text model does not embed may not stand in rows of text."""
    for row in store if store is not None and not_embedded else ():
        found = not_embedded.intersection(row.input_ids.tolist())
        if found:
            raise DataError(
                f"the row holds {tokenizer.convert_ids_to_tokens(min(found))!r}, which this base does not embed",
                where=f"{row.origin.file}:{row.origin.line}",
                fix="write it another way: it stands for an image or a sound",
            )


def _needs(
    loaded: LoadedRecipe,
    method: MethodConfig,
    start: StartAdapter | None,
    skeleton: nn.Module,
    task: Task,
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    device: str,
    dtype: str,
    *,
    packed: bool,
) -> Needs:
    """What decides how much memory the run takes: the model on the meta device in the types of training, and its rows."""
    recipe = loaded.recipe
    skeleton.to(DTYPES[dtype])
    blocks = structure(skeleton).blocks
    base_bytes = stored_bytes(skeleton, DTYPES[dtype])
    largest = max((math.prod(weight_view(module).shape) for module in structure(skeleton).linears.values()), default=0)
    # a packed matrix is unpacked for each product, one at a time
    dense_bytes = largest * DTYPES[dtype].itemsize if packed else 0
    num_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    adapter = laid_out(skeleton, method, start)
    tensors = adapter.trainable_parameters().values()
    trained = sum(tensor.nbytes for tensor in tensors)
    return Needs(
        rehearsal=Rehearsal(skeleton, adapter, task, blocks),
        stored=Stored(base_bytes, trained, trained, int(trained * recipe.training.optimizer.state_size), dense_bytes),
        num_parameters=num_parameters,
        largest_matrix=largest,
        train=longest_rows(data.train),
        validation=None if data.validation is None else longest_rows(data.validation),
        evaluation_rows=recipe.evaluation.batch_size,
        pad_token_id=int(tokenizer.pad_token_id or 0),
        device=device,
    )
