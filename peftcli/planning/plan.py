"""The plan: every fact that can be known before a weight is loaded, and what `train` then follows to the letter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from peftcli import system
from peftcli.adapters.base import Adapter
from peftcli.adapters.config import MethodConfig
from peftcli.adapters.learning_rate import auto_rate
from peftcli.adapters.prompt_sites import learned_positions
from peftcli.adapters.rehearsing import require_runs
from peftcli.adapters.sources import KEY as INIT_ADAPTER
from peftcli.adapters.starting import StartAdapter, class_made_for, laid_out, read_start
from peftcli.adapters.surgery import attached, build, detach, layer_kernels, summary
from peftcli.data.cache import default_cache_dir
from peftcli.data.chat_variables import chat_mode
from peftcli.data.config import AUTO, DataConfig
from peftcli.data.encode.base import Encoding
from peftcli.data.order import BatchOrder
from peftcli.data.prepare import PreparedData, prepare
from peftcli.data.store import TokenStore
from peftcli.data.stream_order import StreamOrder
from peftcli.data.truncation import read_lengths
from peftcli.errors import AdapterError, DataError, DeviceError, MemoryLimitError, RecipeError
from peftcli.evaluation.generate import context_length
from peftcli.kernels.names import GATED_MLP, IN_LAYERS, KERNELS, OFF
from peftcli.launching.places import place
from peftcli.models.added_tokens import AddedTokens, give_rows
from peftcli.models.companions import check_vocabulary
from peftcli.models.dequantized import packed_share, storage_name
from peftcli.models.device import before_start, has_bf16
from peftcli.models.gated_mlp import gated_candidates
from peftcli.models.heads import LabelHead
from peftcli.models.load import DTYPES, load_tokenizer, meta_model
from peftcli.models.source import BaseSource, resolve_base
from peftcli.models.structure import structure
from peftcli.models.weights import stored_bytes, weight_view
from peftcli.planning.fit import Choice, Needs, choose, longest_rows, remedies
from peftcli.planning.labels import known_to, label_head, trained_with_head
from peftcli.planning.memory import MemoryEstimate, Stored
from peftcli.planning.padding import Padding, idle_packing, padding_of, require_packable
from peftcli.planning.sizes import size_text
from peftcli.planning.step_memory import Rehearsal
from peftcli.planning.tokens import new_tokens, trained_with_tokens
from peftcli.recipe import LoadedRecipe, Recipe, recipe_template
from peftcli.recipe.rules import SCHEDULE_FIX
from peftcli.recipe.surroundings import require_packages
from peftcli.tasks.base import Task
from peftcli.training.compiled_blocks import require_compiler
from peftcli.training.config import TrainingConfig
from peftcli.training.optimizers import require_device
from peftcli.training.seeding import stream_seed

LEAST_PACKED = 0.5
"""Share of the weights of which a quantized base that packs fewer is told."""


@dataclass(frozen=True)
class Resolved:
    """Every `auto` of the recipe as a value. Depends on the recipe, the data, the allowed CPUs and the total memory."""

    device: str
    threads: int
    precision: str
    dtype: str
    micro_batch_size: int
    learning_rate: float
    learning_rate_note: str
    steps: int
    steps_per_epoch: int
    warmup_steps: int
    quantization: str | None = None
    """How the base's linear layers are stored, as asked or since its checkpoint is; None for plain weights."""
    gradient_checkpointing: bool | None = None
    """Whether layers are recomputed, where the recipe leaves it open; None: as the recipe says."""
    kernels: tuple[str, ...] = ()
    """Fast paths of the training passes, in the order of their table; none: every pass is plain."""


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
    start = None if recipe.model.init_adapter is None else _fitting(read_start(recipe.model.init_adapter), loaded, task)
    task = known_to(task, source, start)
    # what an adapter or new tokens make of the base is known only with the tokenizer
    plain = start is None and not recipe.model.add_tokens
    counts = _attached_counts(skeleton, method, task, start, recipe.data) if plain else None
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
        _require_same_layers(loaded, skeleton, method, start)
    if counts is None and not task.learns_labels:
        counts = _attached_counts(skeleton, method, task, start, recipe.data)
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
        counts = _attached_counts(skeleton, method, task, start, recipe.data)
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
    resolved = _resolve(loaded, counts, order, device, precision, dtype, choice, quantization)
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
            *_warnings(loaded, skeleton, resolved, counts.added_positions, validated=data.validation is not None),
            *_idle_kernels(recipe.training.kernels, _usable_kernels(recipe.training, counts)),
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


# -- values that depend on the machine ---------------------------------------------------------------------------


def resolve_device(wanted: str) -> str:
    """`auto` is the first GPU, else the CPU. Raises `DeviceError` for a device that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, is_there in there.items() if is_there)
    if not there.get(wanted, False):
        raise DeviceError(
            f"device {wanted} is not available on this machine",
            fix="use `device: auto`; `peft doctor` shows what is there",
        )
    before_start(wanted)
    return wanted


def resolve_threads(wanted: int | str, processes: int = 1) -> int:
    """`auto` is the number of CPUs that this process may use, never the load; `processes` of a machine share them."""
    return max(1, system.usable_cpus() // processes) if wanted == "auto" else int(wanted)


def processes_here(recipe: Recipe) -> int:
    """How many processes of the run are on this machine: as its launcher says, else all of them."""
    found = place()
    return found.local_size if found.size > 1 else recipe.training.processes


def resolve_precision(precision: str, dtype: str, device: str) -> tuple[str, str]:
    """Precision of the arithmetic and type of the frozen base. `auto` is bf16 on a GPU that has it, else fp32."""
    if precision == "auto":
        if dtype in ("bfloat16", "float16"):
            precision = {"bfloat16": "bf16", "float16": "fp16"}[dtype]
        elif dtype == "float32" or device != "cuda":
            precision = "fp32"
        else:
            precision = "bf16" if has_bf16(device) else "fp16"
    if dtype == "auto":
        dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]
    if precision == "fp16" and device == "cpu":
        raise DeviceError("fp16 does not train on a CPU", fix="use `precision: bf16` or fp32")
    if precision == "fp32" and dtype != "float32":
        raise RecipeError(
            f"`precision: fp32` with `dtype: {dtype}` computes in {dtype}", fix="leave one of the two at auto"
        )
    return precision, dtype


# -- facts of model and data -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counts:
    targets: tuple[str, ...]
    trainable: int
    total: int
    base: int
    hidden_size: int
    num_layers: int
    intermediate_size: int
    added_positions: int
    notes: tuple[str, ...]
    left_out: dict[str, str]
    kernels: frozenset[str]
    """Fast paths that task, model and the method's layers can take."""


def _fitting(start: StartAdapter, loaded: LoadedRecipe, task: Task) -> StartAdapter:
    """The adapter, where it was made for the models that the task trains. Raises `AdapterError` otherwise."""
    made_for = class_made_for(start.folder)
    if made_for in (None, task.auto_class):
        return start
    raise AdapterError(
        f"the adapter was made for {made_for}, and `task: {task.name}` trains {task.auto_class}",
        where=f"{loaded.origin(INIT_ADAPTER)} ({start.folder})",
        fix="merge it (`peft merge`) and name the merged model under `model.base`, or choose the task it was trained for",
    )


def _require_same_layers(loaded: LoadedRecipe, skeleton: nn.Module, method: MethodConfig, start: StartAdapter) -> None:
    """What the recipe says of layers by another rule than the adapter must mean the adapter's layers."""
    meant = set(_targets_of(skeleton, lambda: build(skeleton, method.model_copy(update=dict(loaded.claims)))))
    own = set(_targets_of(skeleton, lambda: start.lay_out(skeleton, method)))
    if meant == own:
        return
    one, other = sorted(meant - own), sorted(own - meant)
    what = f"`{one[0]}`, which the adapter leaves out" if one else f"all but `{other[0]}`, which the adapter has"
    key = next(iter(loaded.claims))
    raise RecipeError(
        f"`method.{key}` contradicts the adapter of `{INIT_ADAPTER}`: it means {what}",
        where=loaded.origin(f"method.{key}"),
        fix="leave it out: the adapter's own fields rule",
    )


def _targets_of(skeleton: nn.Module, lay_out: Callable[[], Adapter]) -> list[str]:
    try:
        return lay_out().targets()
    finally:
        if attached(skeleton) is not None:
            detach(skeleton)


def _attached_counts(
    skeleton: nn.Module, method: MethodConfig, task: Task, start: StartAdapter | None, data: DataConfig
) -> _Counts:
    """Exact counts: the method is built on the meta device, exactly as on the real one."""
    shape = structure(skeleton)
    base = sum(parameter.numel() for parameter in skeleton.parameters())
    adapter = laid_out(skeleton, method, start)
    added, left_out = adapter.added_positions(), adapter.left_out
    require_packable(data, task, adapter)
    require_runs(skeleton, adapter)
    found = summary(skeleton)
    kernels = layer_kernels(skeleton) | task.kernels
    detach(skeleton)
    if any(True for _ in gated_candidates(skeleton)):
        kernels |= {GATED_MLP}
    widths = [max(weight_view(module).shape) for module in shape.linears.values()]
    sizes = (shape.hidden_size, shape.num_layers, max(widths, default=0))
    notes = tuple(found.notes)
    return _Counts(found.targets, found.trainable, found.total, base, *sizes, added, notes, left_out, kernels)


def _check_positions(
    loaded: LoadedRecipe, skeleton: nn.Module, counts: _Counts, data: PreparedData, encoding: Encoding
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


def _resolve(
    loaded: LoadedRecipe,
    counts: _Counts,
    order: BatchOrder | StreamOrder,
    device: str,
    precision: str,
    dtype: str,
    choice: Choice,
    quantization: str | None,
) -> Resolved:
    training = loaded.recipe.training
    rate, rate_note = _learning_rate(loaded, counts.hidden_size)
    steps = training.num_steps(order.steps_per_epoch)
    if training.lengths and training.lengths[-1].after >= steps:
        raise RecipeError(
            f"`training.lengthened` speaks of step {training.lengths[-1].after} of a run of {steps}",
            where="training.lengthened",
            fix="take it out, or give the run its length again",
        )
    if (fault := training.schedule_fault(steps)) is not None:
        raise RecipeError(fault, where="training.scheduler", fix=SCHEDULE_FIX)
    return Resolved(
        device=device,
        threads=resolve_threads(loaded.recipe.threads, processes_here(loaded.recipe)),
        precision=precision,
        dtype=dtype,
        micro_batch_size=choice.micro_batch_size,
        learning_rate=rate,
        learning_rate_note=rate_note,
        steps=steps,
        steps_per_epoch=order.steps_per_epoch,
        warmup_steps=training.num_warmup_steps(steps),
        quantization=quantization,
        gradient_checkpointing=bool(choice.checkpoint_every) if training.gradient_checkpointing == "auto" else None,
        kernels=_kernels(training.kernels, _usable_kernels(training, counts)),
    )


def _usable_kernels(training: TrainingConfig, counts: _Counts) -> frozenset[str]:
    """What this run can use: inside of compiled layers the compiler makes its own fast paths."""
    return counts.kernels - IN_LAYERS if training.compile else counts.kernels


def _kernels(wanted: str | list[str], usable: frozenset[str]) -> tuple[str, ...]:
    """The fast paths of a run: those that it can use, none, or those that the recipe names."""
    if wanted == OFF:
        return ()
    chosen = usable if wanted == AUTO else wanted
    return tuple(name for name in KERNELS if name in chosen)


def _idle_kernels(wanted: str | list[str], usable: frozenset[str]) -> list[str]:
    names = [] if isinstance(wanted, str) else [name for name in wanted if name not in usable]
    return [f"training.kernels names {name}, which nothing in this run can use" for name in names]


def _learning_rate(loaded: LoadedRecipe, hidden_size: int) -> tuple[float, str]:
    """The peak rate, and how it came about."""
    given, optimizer = loaded.recipe.training.learning_rate, loaded.recipe.training.optimizer
    if given != "auto":
        return float(given), "as the recipe says"
    if optimizer.own_rate is not None:
        return optimizer.own_rate, f"{optimizer.type} finds its own step size"
    auto = auto_rate(loaded.recipe.method, hidden_size)
    if optimizer.rate_factor == 1.0:
        return auto.rate, auto.note
    return auto.rate * optimizer.rate_factor, f"{auto.note}; times {optimizer.rate_factor:g} for {optimizer.type}"


def _warnings(
    loaded: LoadedRecipe, skeleton: nn.Module, resolved: Resolved, added: int, *, validated: bool
) -> list[str]:
    recipe, found = loaded.recipe, []
    if resolved.quantization and (share := packed_share(skeleton)) < LEAST_PACKED:
        found.append(
            f"{share:.0%} of the base's weights are stored as {resolved.quantization}: fused experts, embeddings and heads "
            f"stay in {resolved.dtype}"
        )
    context = context_length(skeleton)
    if context is not None and recipe.data.max_length + added > context:
        length = f"data.max_length {recipe.data.max_length}" + (f" and {added} virtual tokens" if added else "")
        found.append(f"{length} exceed{'' if added else 's'} the base's context of {context}")
    if recipe.training.learning_rate == "auto" and "extrapolated" in resolved.learning_rate_note:
        found.append(f"learning rate {resolved.learning_rate:g}: {resolved.learning_rate_note}")
    if recipe.data.validation == AUTO and not validated:
        why = "a stream has no rows to spare" if recipe.data.streaming else "there are too few rows to spare any"
        found.append(f"nothing is held out, so nothing will be measured: {why}; name rows in `data.validation`")
    for name, section in (("checkpoint", recipe.checkpoint), ("evaluation", recipe.evaluation)):
        key, every = f"{name}.every", section.every
        # a default is no wish that a short run could disappoint
        if every and every > resolved.steps and loaded.is_wish(key):
            found.append(f"{key} {every} is more than the {resolved.steps} steps of this run")
    return [*found, *_idle_processes(recipe, resolved), *_idle_early_stopping(recipe, resolved.steps)]


def _idle_processes(recipe: Recipe, resolved: Resolved) -> list[str]:
    """Processes that have no part of a batch: what a recipe says of its parts is not changed behind its back."""
    rows, processes = recipe.training.batch_size, recipe.training.processes
    parts = -(-rows // resolved.micro_batch_size)
    # how many packs a batch will make is known when it is packed
    if recipe.data.packing or parts >= processes:
        return []
    most = max(1, -(-rows // processes))
    fix = f"lower training.micro_batch_size to {most}" if most < resolved.micro_batch_size else "raise batch_size"
    return [f"{processes - parts} of {processes} processes have no rows of a batch, which is cut into {parts}: {fix}"]


def _idle_early_stopping(recipe: Recipe, steps: int) -> list[str]:
    """A rule that cannot end a run of so many steps before its end: it has too few evaluations to wait for."""
    rule, every = recipe.training.early_stopping, recipe.evaluation.every
    chances = 0 if every is None else (steps - 1) // every
    if rule is None or chances >= rule.patience:
        return []
    seen = f"{chances} evaluation{'' if chances == 1 else 's'}"
    return [
        f"training.early_stopping cannot act: its patience is {rule.patience}, and this run of {steps} steps has {seen} "
        f"before its end; lower `evaluation.every`, or leave the rule out"
    ]
