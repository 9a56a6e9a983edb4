"""The plan: every fact that can be known before a weight is loaded, and what `train` then follows to the letter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from peftcli.adapters.config import MethodConfig
from peftcli.adapters.starting import StartAdapter
from peftcli.data.cache import default_cache_dir
from peftcli.data.chat_variables import chat_mode
from peftcli.data.order import BatchOrder
from peftcli.data.prepare import PreparedData, prepare
from peftcli.data.stream_order import StreamOrder
from peftcli.errors import MemoryLimitError
from peftcli.evaluation.generate import context_length
from peftcli.models.added_tokens import AddedTokens
from peftcli.models.companions import check_vocabulary
from peftcli.models.heads import LabelHead
from peftcli.models.source import BaseSource
from peftcli.planning.adapted_base import AdaptedBase, open_base, with_labels
from peftcli.planning.doubts import doubts_of, idle_kernels
from peftcli.planning.fit import Choice, choose, remedies
from peftcli.planning.machine import processes_here, resolve_device, resolve_precision
from peftcli.planning.memory import MemoryEstimate
from peftcli.planning.needs import needs_of
from peftcli.planning.padding import Padding, idle_packing, padding_of
from peftcli.planning.resolved import Resolved, resolve, usable_kernels
from peftcli.planning.row_checks import require_embedded, require_positions
from peftcli.planning.sizes import size_text
from peftcli.recipe import LoadedRecipe
from peftcli.recipe.surroundings import require_packages
from peftcli.tasks.base import Task
from peftcli.training.compiled_blocks import require_compiler
from peftcli.training.optimizers import require_device


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
    machine = _machine(loaded, device_memory=device_memory, planning=planning)
    base = open_base(loaded, task)
    chats = chat_mode(base.tokenizer)
    check = partial(
        require_embedded, base.tokenizer, check_vocabulary(base.skeleton, base.tokenizer, base.source.location)
    )
    data = _rows(loaded, base, progress)
    base = with_labels(base, loaded, data)
    data = _arranged(data, base.task)
    require_positions(loaded, base.skeleton, base.counts, data, base.task.encoding)
    for store in (data.train, data.validation):
        check(store)
    order = data.order(recipe.training.batch_size, recipe.seed, max_steps=recipe.training.max_steps, check=check)
    needs = needs_of(recipe, base, data, machine.device, machine.dtype)
    choice = choose(
        needs, recipe.training, device=machine.device, device_memory=device_memory, processes=processes_here(recipe)
    )
    resolved = resolve(
        loaded, base.counts, order, machine.device, machine.precision, machine.dtype, choice, base.quantization
    )
    plan = replace(
        _plan(loaded, base, data, resolved, choice),
        remedies=() if choice.fits else remedies(needs, choice),
        warnings=(
            *loaded.warnings,
            *machine.lacking,
            *_doubts(loaded, base, data, resolved),
            *(chats.warnings if data.facts.holds_chats else ()),
        ),
        padding=padding_of(recipe.data, data.train.lengths, order, resolved.micro_batch_size)
        if base.task.packs_rows
        else None,
        chat=chats.text if data.facts.holds_chats else "",
    )
    return Prepared(
        loaded,
        plan,
        base.source,
        base.tokenizer,
        data,
        order,
        base.task,
        base.method,
        base.head,
        base.start,
        base.added,
    )


@dataclass(frozen=True)
class _Machine:
    """What a run computes on and in, and the packages that are not here for it, in words."""

    device: str
    precision: str
    dtype: str
    lacking: Sequence[str]


def _machine(loaded: LoadedRecipe, *, device_memory: int | None, planning: bool) -> _Machine:
    """Raises where the machine lacks what the recipe asks for: before anything of a base or of data is read."""
    recipe = loaded.recipe
    # a card that need not be here
    elsewhere = device_memory is not None and recipe.device in ("auto", "cuda")
    device = "cuda" if elsewhere else resolve_device(recipe.device)
    require_device(recipe.training.optimizer, device=device)
    lacking = require_packages(loaded, planning=planning)
    if recipe.training.compile and not elsewhere:
        require_compiler(device)
    precision, dtype = resolve_precision(recipe.training.precision, recipe.model.dtype, device)
    return _Machine(device, precision, dtype, lacking)


def _rows(loaded: LoadedRecipe, base: AdaptedBase, progress: Callable[..., Any] | None) -> PreparedData:
    """The rows of the recipe; what its checks found is raised by the run, once it is written down."""
    recipe = loaded.recipe
    return prepare(
        recipe.data,
        tokenizer=base.tokenizer,
        folder=loaded.folder,
        seed=recipe.seed,
        cache_dir=default_cache_dir(),
        progress=progress,
        stop_on_failures=False,
        context=context_length(base.skeleton),
        encoding=base.task.encoding,
    )


def _arranged(data: PreparedData, task: Task) -> PreparedData:
    """The rows as the task pairs them."""
    validation = None if data.validation is None else task.arrange(data.validation)
    return replace(data, train=task.arrange(data.train), validation=validation)


def _doubts(loaded: LoadedRecipe, base: AdaptedBase, data: PreparedData, resolved: Resolved) -> tuple[str, ...]:
    recipe, counts = loaded.recipe, base.counts
    validated = data.validation is not None
    return (
        *doubts_of(loaded, base.skeleton, resolved, counts.added_positions, validated=validated),
        *idle_kernels(recipe.training.kernels, usable_kernels(recipe.training, counts)),
        *counts.notes,
        *data.warnings,
        *idle_packing(recipe.data, data.train.lengths),
    )


def _plan(loaded: LoadedRecipe, base: AdaptedBase, data: PreparedData, resolved: Resolved, choice: Choice) -> Plan:
    recipe, counts = loaded.recipe, base.counts
    return Plan(
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
        # float32, four bytes a number
        adapter_disk_bytes=counts.trainable * 4,
        # the adapter and two moments of the optimizer, for each kept checkpoint and the one that is being written
        checkpoint_disk_bytes=counts.trainable * 4 * 3 * (recipe.checkpoint.keep + 1),
        chosen=choice.notes,
        remedies=(),
        budget_bytes=choice.budget_bytes,
        warnings=(),
        left_out=counts.left_out,
    )


def unfit(plan: Plan) -> MemoryLimitError | None:
    """The error of a plan that needs more than the memory it was made for; None where it fits."""
    if not plan.remedies or plan.budget_bytes is None:
        return None
    return MemoryLimitError(
        f"the run needs about {size_text(plan.memory.peak_bytes)} (estimated), more than the "
        f"{size_text(plan.budget_bytes)} there are",
        fix="; or ".join(plan.remedies),
    )
