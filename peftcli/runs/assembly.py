"""Base model, data, task and adapter put together for one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from peftcli.adapters.identity import base_fingerprint
from peftcli.data.store import EncodedRow, TokenStore
from peftcli.data.stream_order import StreamOrder
from peftcli.errors import DeviceError, RecipeError
from peftcli.evaluation.evaluate import Evaluation, evaluate
from peftcli.models.added_tokens import give_rows
from peftcli.models.device import peak_memory_bytes, start_peak_memory
from peftcli.models.fingerprint import Fingerprint
from peftcli.models.heads import settle_padding
from peftcli.models.load import DTYPES, load_model
from peftcli.models.structure import structure
from peftcli.planning.machine import processes_here
from peftcli.planning.plan import Prepared
from peftcli.recipe import flat_recipe
from peftcli.runs.folder import resolved_values
from peftcli.tasks.base import Task
from peftcli.training.acceleration import build_accelerator
from peftcli.training.progress import TrainingProgress, build_progress
from peftcli.training.seeding import stream_seed
from peftcli.training.trackers import Trackers, require_packages
from peftcli.training.world import ALONE, World


@dataclass
class Assembly:
    """One run's parts, on the device, with the scores that evaluation leaves behind."""

    prepared: Prepared
    folder: Path
    model: nn.Module
    task: Task
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    blocks: tuple[nn.Module, ...]
    model_memory_bytes: int
    base_fingerprint: Fingerprint
    quiet: bool
    progress: TrainingProgress
    world: World = ALONE
    """The processes of the run; only the leading one writes."""
    base_bytes: tuple[int, int] | None = None
    """Of a base that is spread: bytes of the whole, and of what this process holds of it."""
    trackers: Trackers | None = None
    scores: dict[int, Evaluation] = field(default_factory=dict)
    followers: list[Callable[[Path], None]] = field(default_factory=list)
    """Told when the run folder lies elsewhere."""

    def move(self, folder: Path) -> None:
        """The run folder lies at `folder` now, with everything that is in it."""
        self.folder = folder
        for follow in self.followers:
            follow(folder)

    def start_trackers(self) -> None:
        """Starts those that the recipe names; they write into the run folder as it lies now."""
        self.trackers = _trackers(self.prepared, self.accelerator, self.folder)

    def emit(self, event: str, step: int, **facts: Any) -> None:
        """Tells an event to the trackers, once there are any."""
        if self.trackers is not None:
            self.trackers(event, step, **facts)

    @property
    def pad_token_id(self) -> int:
        """What padding is filled with; a tokenizer without one pads with 0, which is masked."""
        return int(self.tokenizer.pad_token_id or 0)

    @property
    def validation(self) -> TokenStore | None:
        """The validation rows; None where there are none to score."""
        found = self.prepared.data.validation
        return found if found is not None and len(found) else None

    def collate(self, rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """Encoded rows as one batch of the task, on the CPU."""
        return self.task.collate(rows, pad_token_id=self.pad_token_id)

    def rows(self, indices: Iterable[int]) -> list[EncodedRow]:
        """Training rows by their numbers in the run's order."""
        order = self.prepared.order
        if isinstance(order, StreamOrder):
            return order.rows([int(index) for index in indices])
        return [self.prepared.data.train[int(index)] for index in indices]

    def evaluate(self, *, with_samples: bool) -> Evaluation | None:
        """The model as it stands on the validation rows; None without any."""
        if self.validation is None:
            return None
        recipe = self.prepared.loaded.recipe
        return evaluate(
            self.model,
            self.task,
            self.validation,
            self.tokenizer,
            config=recipe.evaluation,
            generation=recipe.generation,
            pad_token_id=self.pad_token_id,
            seed=generation_seed(recipe.seed),
            chat=self.prepared.data.facts.holds_chats,
            with_samples=with_samples,
            progress=self.progress.evaluating,
            sharing=self.world,
        )


def assemble(prepared: Prepared, folder: Path, *, quiet: bool, track: bool = True, world: World = ALONE) -> Assembly:
    """Loads the base's weights and makes everything ready for `attach`. `track`: start the recipe's trackers now."""
    _require_processes(prepared, world)
    resolved = prepared.plan.resolved
    # before the weights, which may take minutes to read
    require_packages(prepared.loaded.recipe.tracking)
    if isinstance(prepared.order, StreamOrder) and world.leads:
        prepared.order.keep_cursors(cursors_in(folder))
    accelerator = build_accelerator(device=resolved.device, precision=resolved.precision)
    # from here on, so that the peak holds the base and nothing that planning has freed again
    start_peak_memory(resolved.device)
    attention = prepared.loaded.recipe.model.attention
    model = load_model(
        prepared.source,
        auto_class=prepared.task.auto_class,
        dtype=DTYPES[resolved.dtype],
        attention=None if attention == "auto" else attention,
        # one that will be spread may not fit a device as a whole
        device=resolved.device if prepared.loaded.recipe.training.sharding == "none" else "cpu",
        quantization=prepared.loaded.recipe.model.quantization,
        head=prepared.head,
    )
    if prepared.added is not None:
        give_rows(model, prepared.added)
    if prepared.head is not None:
        settle_padding(model, prepared.tokenizer)
    found = Assembly(
        prepared=prepared,
        folder=folder,
        model=model,
        task=prepared.task,
        tokenizer=prepared.tokenizer,
        accelerator=accelerator,
        blocks=tuple(structure(model).blocks.values()),
        model_memory_bytes=peak_memory_bytes(resolved.device),
        base_fingerprint=base_fingerprint(model),
        quiet=quiet,
        progress=build_progress(quiet=quiet or not world.leads),
        world=world,
    )
    if track and world.leads:
        found.start_trackers()
    return found


def _require_processes(prepared: Prepared, world: World) -> None:
    recipe, device = prepared.loaded.recipe, prepared.plan.resolved.device
    wanted, where = recipe.training.processes, prepared.loaded.origin("training.processes")
    if wanted != world.size:
        raise RecipeError(
            f"training.processes is {wanted}, and the run has {world.size}",
            where=where,
            fix=f"set training.processes: {world.size}",
        )
    here = processes_here(recipe)
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device, here)
    if here > there:
        raise DeviceError(
            f"{here} processes on this machine need a device each, and it has {there} ({device})",
            where=where,
            fix=f"set training.processes: {there}, or device: cpu",
        )


def _trackers(prepared: Prepared, accelerator: Accelerator, folder: Path) -> Trackers | None:
    names = prepared.loaded.recipe.tracking
    if not names:
        return None
    recipe = flat_recipe(prepared.loaded.recipe) | resolved_values(prepared.plan.resolved)
    return Trackers(accelerator, names, run=prepared.loaded.name, folder=folder / "tracking", recipe=recipe)


def generation_seed(seed: int) -> int:
    """Of the draws of a run's evaluations, so that `seeds: n` varies them too."""
    return stream_seed(seed, "generation")


def cursors_in(folder: Path) -> Path:
    """Where a run keeps how far it has read in a stream."""
    return folder / "data" / "stream.jsonl"
