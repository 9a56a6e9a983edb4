"""Runs again what a lock pins, in a fresh folder that is removed unless it differs, and compares."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from peftcli import files
from peftcli.data.doctor.run import raise_failures
from peftcli.errors import CheckFailed, Interrupted, RecipeError
from peftcli.lock.differences import Difference, environment_differences, input_differences
from peftcli.lock.document import LOCK_NAME, Expected, Lock, RunTrace
from peftcli.lock.lock_file import lock_path, read_lock
from peftcli.lock.trace import read_steps, trace_of
from peftcli.planning.plan import Prepared, prepare_run
from peftcli.recipe import LoadedRecipe
from peftcli.reproduce.comparing import compare, terms
from peftcli.reproduce.result import Reproduction, SeedResult
from peftcli.run import run_draft
from peftcli.runs.assembly import assemble
from peftcli.runs.attaching import attach_method
from peftcli.runs.base_sharding import in_turn, require_several, shard_base
from peftcli.runs.draft import Draft
from peftcli.runs.fitting import beginning_of, fit_setup
from peftcli.runs.following import end_following, lead
from peftcli.runs.locating import no_run
from peftcli.runs.locking import Overrides, inputs_of, pinned_recipe
from peftcli.runs.own_files import RECIPE_NAME
from peftcli.runs.processes import run_processes
from peftcli.runs.seeds import of_seed, seed_folder
from peftcli.runs.start_checks import require_fit_base, require_same_start
from peftcli.streams import Say
from peftcli.training.loop import fit
from peftcli.training.world import World

_RUNS = "runs"


def reproduce(
    path: str | Path,
    *,
    overrides: Overrides = (),
    steps: int | None = None,
    strict: bool = False,
    quiet: bool = True,
    say: Say = lambda line: None,
) -> Reproduction:
    """Runs the recipe of `path` (a recipe file or run folder) again, as its lock pins it, and compares with the lock.

    `steps`: take only the first so many, on the schedule of the whole run, without evaluation. `say` gets what differs
    before anything is trained. Raises `RecipeError` where there is no lock, or it holds no results, and every error of
    a run; a result that differs is no error here: `held` is False.
    """
    started = time.monotonic()
    recipe = recipe_of(Path(path).expanduser())
    lock, expected = _read(recipe)
    with run_processes() as world, _fresh_folder(recipe) as (folder, keep):
        job = _Job(recipe, lock, expected, folder, world, quiet=quiet, say=say)
        try:
            seeds = job.first_steps(overrides, steps) if steps is not None else job.whole(overrides)
        except Interrupted as error:
            raise Interrupted(
                "interrupted; nothing is kept", signal_number=error.signal_number, fix="run it again"
            ) from error
        end_following(world, folder)
        result = Reproduction(
            recipe=str(recipe),
            lock=str(lock_path(recipe)),
            strict=strict,
            prefix=steps is not None,
            inputs=tuple(job.inputs),
            environment=tuple(job.environment),
            seeds=tuple(seeds),
            seconds=time.monotonic() - started,
        )
        return result if result.held else dataclasses.replace(result, folder=str(keep()))


def recipe_of(path: Path) -> Path:
    """The recipe that a run folder or a recipe file stands for."""
    if not path.is_dir():
        return path
    if not (path / RECIPE_NAME).is_file():
        raise no_run(path)
    return path / RECIPE_NAME


def _read(recipe: Path) -> tuple[Lock, Expected]:
    path = lock_path(recipe)
    fix = f"peft train {recipe} --output RUN, then peft lock RUN"
    if not recipe.is_file():
        raise RecipeError("no such recipe", where=str(recipe), fix="check the path")
    if not path.is_file():
        raise RecipeError("there is no lock to reproduce", where=str(path), fix=fix)
    lock = read_lock(path)
    if lock.expected is None or not lock.expected.runs:
        raise RecipeError("the lock holds no results to compare with", where=str(path), fix=fix)
    return lock, lock.expected


@contextlib.contextmanager
def _fresh_folder(recipe: Path) -> Iterator[tuple[Path, Callable[[], Path]]]:
    """A temporary folder where runs lie (beside a run, else `runs/`), and the function that keeps it under a name."""
    is_run = recipe.name == RECIPE_NAME and (recipe.parent / LOCK_NAME).is_file()
    parent = recipe.absolute().parent.parent if is_run else Path(_RUNS).absolute()
    made = not parent.exists()
    with files.storage_errors(parent):
        files.disk.make_folder(parent)
        # a temporary name, so that whatever a killed reproduction leaves is known as ours
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{files.TEMPORARY_PREFIX}reproduce-"))
    name = recipe.parent.name if is_run else recipe.stem

    def keep() -> Path:
        number = 1
        while (target := parent / f"{name}-reproduced-{number:03d}").exists():
            number += 1
        with files.storage_errors(target):
            files.disk.rename(folder, target)
        return target

    try:
        yield folder, keep
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # only where we made it, and `rmdir` removes none that holds anything
        if made:
            with contextlib.suppress(OSError):
                parent.rmdir()


class _Job:
    """One reproduction: what differs before it, and a result for each seed."""

    def __init__(
        self, recipe: Path, lock: Lock, expected: Expected, folder: Path, world: World, *, quiet: bool, say: Say
    ) -> None:
        self.recipe = recipe
        self.lock = lock
        self.expected = expected
        self.folder = folder
        self.world = world
        self.quiet = quiet
        self.say = say
        self.inputs: Sequence[Difference] = ()
        self.environment: Sequence[Difference] = ()

    def whole(self, overrides: Overrides) -> list[SeedResult]:
        """Every seed of the recipe, to its end."""
        loaded = _untracked(pinned_recipe(self.recipe, overrides, self.lock))
        seeds = seeds_of(loaded)
        self._require_as_many(seeds)
        found = []
        for number, (seed, locked) in enumerate(zip(seeds, self.expected.runs, strict=True)):
            folder = self.folder if len(seeds) == 1 else seed_folder(self.folder, seed)
            draft = Draft(folder, of_seed(loaded, seed), time.monotonic())
            draft.prepared = prepare_run(draft.loaded)
            if number == 0:
                # of the whole recipe, not of one seed's: the lock names all seeds
                here = self._tell(dataclasses.replace(draft.prepared, loaded=loaded))
            record = run_draft(draft, quiet=self.quiet, world=self.world)
            own = read_lock(folder / LOCK_NAME)
            assert own.expected is not None, "a finished run writes its results into its lock"
            if number == 0:
                # what is known only with the weights loaded
                base = here.base.model_copy(update={"fingerprint": own.base.fingerprint})
                self._compare_inputs(here.model_copy(update={"base": base, "settings": own.settings}))
            found.append(self._result(locked, own, own.expected.runs[0], record.evaluation.tuned))
        return found

    def first_steps(self, overrides: Overrides, steps: int) -> list[SeedResult]:
        """The first steps of the first seed: no evaluation, no adapter."""
        loaded = _untracked(pinned_recipe(self.recipe, overrides, self.lock))
        self._require_as_many(seeds_of(loaded))
        prepared = prepare_run(of_seed(loaded, loaded.recipe.seed))
        own = self._tell(dataclasses.replace(prepared, loaded=loaded))
        raise_failures(prepared.data.findings)
        torch.set_num_threads(prepared.plan.resolved.threads)
        require_several(prepared, self.world)
        lead(self.world, prepared, self.folder, resuming=False, steps=steps)
        with in_turn(prepared, self.world):
            assembly = assemble(prepared, self.folder, quiet=self.quiet, world=self.world)
            require_fit_base(assembly)
            attach_method(assembly, resuming=False)
            shard_base(assembly)
        require_same_start(assembly)
        setup = fit_setup(
            assembly,
            resuming=False,
            has_begun_well=lambda: self.world.told_by_leader("folder", str(self.folder)),
        )
        fit(beginning_of(setup, steps))
        taken = read_steps(self.folder / "metrics.jsonl")
        self._compare_inputs(inputs_of(dataclasses.replace(prepared, loaded=loaded), self._lock_folder, assembly))
        trace = trace_of(taken, seed=loaded.recipe.seed, steps=min(steps, prepared.plan.resolved.steps))
        return [self._result(self.expected.runs[0], own, trace, None)]

    def _require_as_many(self, seeds: Sequence[int]) -> None:
        """A seed that is not run, or has nothing to be compared with, was not reproduced."""
        if len(seeds) != len(self.expected.runs):
            locked = ", ".join(str(run.seed) for run in self.expected.runs)
            raise CheckFailed(
                f"the lock has results of the seeds {locked}; the recipe runs {', '.join(map(str, seeds))}",
                where=str(lock_path(self.recipe)),
                fix=f"seeds: {len(self.expected.runs)} in the recipe, or lock a run of it as it is",
            )

    @property
    def _lock_folder(self) -> Path:
        return self.recipe.absolute().parent

    def _tell(self, prepared: Prepared) -> Lock:
        """What differs before anything is trained; returns the lock of what is here."""
        own = inputs_of(prepared, self._lock_folder)
        self._compare_inputs(own)
        for difference in (*self.inputs, *self.environment):
            self.say(f"{'differs' if difference in self.inputs else 'environment'}: {difference.text}")
        return own

    def _compare_inputs(self, own: Lock) -> None:
        self.inputs = input_differences(self.lock, own, self._lock_folder)
        self.environment = environment_differences(self.lock, own)

    def _result(
        self, locked: RunTrace, own: Lock, found: RunTrace, metrics: dict[str, float | None] | None
    ) -> SeedResult:
        return compare(locked, self.expected, found, metrics, terms(self.lock, own, self.inputs))


def _untracked(loaded: LoadedRecipe) -> LoadedRecipe:
    """A reproduction is nobody's experiment: it is not logged to trackers."""
    return dataclasses.replace(loaded, recipe=loaded.recipe.model_copy(update={"tracking": []}))


def seeds_of(loaded: LoadedRecipe) -> list[int]:
    """The seeds that a recipe runs."""
    return [loaded.recipe.seed + number for number in range(loaded.recipe.seeds)]
