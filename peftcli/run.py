"""A run, read top to bottom: recipe -> plan -> model, tokenizer, data -> attach -> fit -> adapter -> record -> report."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from peftcli.data.doctor.run import raise_failures
from peftcli.errors import CheckpointError, Interrupted, PeftcliError, StorageError
from peftcli.evaluation.memory import memory_errors
from peftcli.lock.lock_file import lock_path, read_lock
from peftcli.planning.plan import Prepared, prepare_run, unfit
from peftcli.recipe import LoadedRecipe
from peftcli.redaction import redacted
from peftcli.reports.record import RunRecord
from peftcli.runs.assembly import Assembly, assemble
from peftcli.runs.attaching import attach_method
from peftcli.runs.base_sharding import in_turn, require_several, shard_base
from peftcli.runs.draft import Draft
from peftcli.runs.fitting import fit_setup
from peftcli.runs.folder import choose_output, existing_run, write_findings, write_recipe
from peftcli.runs.folder_lock import owned_folder
from peftcli.runs.following import lead
from peftcli.runs.gates import require_met
from peftcli.runs.lengthening import change_run, parted
from peftcli.runs.locking import locked_run, require_locked_weights
from peftcli.runs.own_files import RECIPE_NAME
from peftcli.runs.place import require_free, run_place
from peftcli.runs.processes import (
    as_options,
    ended,
    followed,
    in_workers,
    load_for,
    require_resumable,
    run_processes,
    starts_workers,
)
from peftcli.runs.row_scores import write_row_scores
from peftcli.runs.scoring import score_run, updates_of
from peftcli.runs.seeds import of_seed, run_seeds
from peftcli.runs.start_checks import require_fit_base, require_same_start
from peftcli.streams import tell
from peftcli.training.loop import fit
from peftcli.training.signals import StopNow, run_signals
from peftcli.training.world import ALONE, World


def train(
    path: str | Path,
    *,
    overrides: Sequence[str] | Mapping[str, object] = (),
    output: str | Path | None = None,
    replace: bool = False,
    locked: bool = False,
    quiet: bool = True,
) -> RunRecord:
    """Trains a recipe into a run folder and returns its record.

    `overrides`: as `--set`, a list of `key=value` or a mapping of dotted keys. `locked`: start only when every input is
    that of the lock beside the recipe. `quiet`: no progress on stderr.
    Raises a `PeftcliError`; once the run folder exists, it then holds a record and a report that say why.
    """
    record, folder = train_into(path, overrides=overrides, output=output, replace=replace, locked=locked, quiet=quiet)
    require_met(record, folder)
    return record


def train_into(
    path: str | Path,
    *,
    overrides: Sequence[str] | Mapping[str, object] = (),
    output: str | Path | None = None,
    replace: bool = False,
    locked: bool = False,
    quiet: bool = True,
) -> tuple[RunRecord, Path]:
    """`train`, with the run folder that was chosen; gates that are not met are in the record and raise nothing."""
    started = time.monotonic()
    with run_processes() as world:
        if not world.leads:
            return followed(world)
        loaded, overrides = load_for(world, Path(path), overrides)
        # before the plan, which may take minutes: a folder in the way is told at once
        folder = choose_output(loaded, output)
        require_free(folder, loaded, replace=replace)
        if starts_workers(world, loaded):
            flags = {"--replace": replace, "--locked": locked, "--quiet": quiet}
            options = [*as_options(overrides), "--output", str(folder), *(name for name, on in flags.items() if on)]
            return in_workers("train", loaded.path, folder, options, loaded.recipe.training.processes), folder
        record, folder = _train(loaded, overrides, output, started, world, replace=replace, locked=locked, quiet=quiet)
        return ended(world, record, folder)


def _train(
    loaded: LoadedRecipe,
    overrides: Sequence[str] | Mapping[str, object],
    output: str | Path | None,
    started: float,
    world: World,
    *,
    replace: bool,
    locked: bool,
    quiet: bool,
) -> tuple[RunRecord, Path]:
    path = loaded.path
    # nothing is made, and nothing of an older run touched, before it is known what will be trained
    loaded, prepared = _planned(loaded, overrides, locked=locked, quiet=quiet)
    if (error := unfit(prepared.plan)) is not None:
        raise error
    lock = read_lock(lock_path(path)) if locked else None
    with run_place(choose_output(loaded, output), loaded, replace=replace) as place:
        if loaded.recipe.seeds > 1:
            record = run_seeds(
                loaded,
                place.folder,
                started,
                lambda draft, _: run_draft(draft, quiet=quiet, world=world),
                planned=prepared,
                place=place,
            )
            return record, place.folder
        draft = Draft(place.folder, loaded, started, prepared=prepared, place=place, lock=lock)
        return run_draft(draft, quiet=quiet, world=world), draft.folder


def _planned(
    loaded: LoadedRecipe, overrides: Sequence[str] | Mapping[str, object], *, locked: bool, quiet: bool
) -> tuple[LoadedRecipe, Prepared]:
    """The recipe, as its lock pins it with `locked`, and the plan of its run or its first seed's; nothing is written."""
    with run_signals(), _stops_told(None):
        _teller(quiet)(f"{loaded.name}: reading {_sources(loaded)}")
        if not locked:
            return loaded, prepare_run(_first(loaded))
        prepared = locked_run(loaded.path, overrides, _warn)
        # the recipe may be another now: the lock pins what a name, such as a revision, stood for
        pinned = prepared.loaded
        return pinned, prepared if pinned.recipe.seeds == 1 else prepare_run(_first(pinned))


def _first(loaded: LoadedRecipe) -> LoadedRecipe:
    return loaded if loaded.recipe.seeds == 1 else of_seed(loaded, loaded.recipe.seed)


def resume(path: str | Path, *, overrides: Sequence[str] | Mapping[str, object] = (), quiet: bool = True) -> RunRecord:
    """Continues an interrupted run from its newest good checkpoint; the result equals the uninterrupted one.

    `overrides`: as `--set`, of keys that say how many processes and threads go on with it, or that steer length,
    evaluation, tracking and checkpoints: a finished run can be made longer. The latter are written into its own recipe.
    Raises `CheckpointError` when there is no run, none of its checkpoints is good, or recipe or data have changed.
    """
    started = time.monotonic()
    with run_processes() as world:
        if not world.leads:
            return followed(world)[0]
        folder = existing_run(path)
        changes, others = parted(overrides)
        others = require_resumable(others, world)
        if changes:
            with owned_folder(folder), run_signals(), _stops_told(None):
                change_run(folder, changes)
        loaded, _ = load_for(world, folder / RECIPE_NAME, others)
        if starts_workers(world, loaded):
            options = [*as_options(others), *(["--quiet"] if quiet else [])]
            return in_workers("resume", folder, folder, options, loaded.recipe.training.processes)
        with owned_folder(folder):
            record = _resume(loaded, folder, started, world, quiet=quiet)
        return ended(world, record, folder)[0]


def _resume(loaded: LoadedRecipe, folder: Path, started: float, world: World, *, quiet: bool) -> RunRecord:
    if loaded.recipe.seeds > 1:
        return run_seeds(
            loaded, folder, started, lambda draft, begun: run_draft(draft, quiet=quiet, resuming=begun, world=world)
        )
    return run_draft(Draft(folder, loaded, started), quiet=quiet, resuming=True, world=world)


def run_draft(draft: Draft, *, quiet: bool, resuming: bool = False, world: World = ALONE) -> RunRecord:
    """One run, from what its draft knows; gates that are not met are in the record and raise nothing.

    `world`: the processes that train it, of which this one leads.
    """
    draft.world = world
    with _failures_recorded(draft, resuming=resuming), run_signals() as signals, _stops_told(draft):
        say = _teller(quiet)
        prepared = _begin(draft, say, resuming=resuming)
        require_several(prepared, world)
        lead(world, prepared, draft.folder, resuming=resuming)
        assembly = _load_and_attach(draft, prepared, quiet=quiet, resuming=resuming)
        require_same_start(assembly)
        # written again: the first lock was written before the base was loaded, and knows no weights
        draft.write_lock()
        draft.training_begins()
        draft.result = fit(fit_setup(assembly, resuming=resuming, has_begun_well=draft.has_begun_well))
        draft.scores = score_run(assembly, draft.result)
        draft.updates = updates_of(assembly.model)
        # from here a signal waits: adapter, lock and record belong together
        with signals.finishing():
            draft.write_adapter()
            draft.write_predictions()
            write_row_scores(draft.folder, draft.scores.base, draft.scores.tuned)
            draft.write_lock()
            record = draft.write_record("completed")
        draft.late_signal = signals.late
        return record


def _begin(draft: Draft, say: Callable[[str], None], *, resuming: bool) -> Prepared:
    """The plan, written down beside the recipe; raises where the data do not allow a run."""
    loaded, folder = draft.loaded, draft.folder
    if draft.prepared is None:
        say(f"{loaded.name}: reading {_sources(loaded)}")
    draft.prepared = prepared = draft.prepared or prepare_run(loaded)
    # set before any computation of the run: sums depend on how many threads share them
    torch.set_num_threads(prepared.plan.resolved.threads)
    if not resuming:
        # the lock first: it knows the recipe that the run's own copy is made of
        draft.write_first_lock()
        write_recipe(folder, loaded, prepared.plan.resolved)
    # written before they are raised: the report of a run that stops here shows them
    write_findings(folder, prepared.data.findings)
    raise_failures(prepared.data.findings)
    say(f"loading {loaded.recipe.model.base} for {prepared.plan.resolved.steps:,} steps into {draft.final_folder}")
    for warning in prepared.plan.warnings:
        say(f"warning: {warning}")
    return prepared


def _load_and_attach(draft: Draft, prepared: Prepared, *, quiet: bool, resuming: bool) -> Assembly:
    """The base on its device with the method attached, spread over the processes where the recipe says so."""
    with (
        memory_errors("loading the base and attaching the method", "use a smaller base, or model.dtype: bfloat16"),
        in_turn(prepared, draft.world),
    ):
        # a run that waits for its place starts trackers when it has it: they keep paths
        waits = draft.place is not None and draft.place.waits
        draft.assembly = assembly = assemble(prepared, draft.folder, quiet=quiet, track=not waits, world=draft.world)
        if draft.lock is not None:
            require_locked_weights(draft.lock, assembly)
        require_fit_base(assembly)
        draft.attached = attach_method(assembly, resuming=resuming)
        # after attaching: a method may start from whole weights, of which each process keeps only a part
        shard_base(assembly)
    return assembly


def _teller(quiet: bool) -> Callable[[str], None]:
    return (lambda line: None) if quiet else _warn


def _sources(loaded: LoadedRecipe) -> str:
    names = [source.path for source in loaded.recipe.data.train_sources]
    return names[0] if len(names) == 1 else f"{len(names)} sources"


def _warn(line: str) -> None:
    tell(redacted(line))


@contextlib.contextmanager
def _stops_told(draft: Draft | None) -> Iterator[None]:
    """A signal outside of the training loop: what is on disk goes on from there. `draft`: None before there is any."""
    try:
        yield
    except StopNow as stop:
        name = signal.Signals(stop.signal_number).name
        ended = draft is not None and draft.result is not None
        when = "after training, before the adapter was written" if ended else "before training"
        begun = draft is not None and draft.folder == draft.final_folder and (draft.folder / RECIPE_NAME).is_file()
        raise Interrupted(
            f"stopped by {name} {when}",
            signal_number=stop.signal_number,
            where=str(draft.folder) if draft is not None and begun else None,
            fix="`peft resume` goes on from there" if begun else None,
        ) from None


@contextlib.contextmanager
def _failures_recorded(draft: Draft, *, resuming: bool) -> Iterator[None]:
    """Whatever stops a run is in its record and report before it reaches the user.

    A resumption that is refused before it changed anything leaves the older record.
    """
    try:
        yield
    except PeftcliError as error:
        refused = resuming and (draft.attached is None or isinstance(error, CheckpointError))
        if not refused:
            # on a full disk the record cannot be written either; what stopped the run is what the user must hear
            with contextlib.suppress(StorageError):
                draft.write_record("interrupted" if isinstance(error, Interrupted) else "failed", error)
        raise
    finally:
        if draft.assembly is not None and draft.assembly.trackers is not None:
            draft.assembly.trackers.close()
