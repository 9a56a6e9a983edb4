"""A run, read top to bottom: recipe -> plan -> model, tokenizer, data -> attach -> fit -> adapter -> record -> report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from peftcli import files
from peftcli.adapters.surgery import attach
from peftcli.data.doctor.run import raise_failures
from peftcli.errors import Interrupted, PeftcliError
from peftcli.jobs.assembly import assemble, fit_setup, init_context, score_run
from peftcli.jobs.draft import Draft
from peftcli.jobs.run_folder import (
    choose_output,
    existing_run,
    new_run_folder,
    write_findings,
    write_recipe,
)
from peftcli.plan import prepare_run
from peftcli.recipe import load_recipe
from peftcli.reports.record import RunRecord
from peftcli.training.loop import fit


def train(
    path: str | Path,
    *,
    overrides: Sequence[str] | Mapping[str, object] = (),
    output: str | Path | None = None,
    replace: bool = False,
    quiet: bool = True,
) -> RunRecord:
    """Trains a recipe into a run folder and returns its record.

    `overrides`: as `--set`, a list of `key=value` or a mapping of dotted keys. `quiet`: no progress on stderr.
    Raises a `PeftcliError`; once the run folder exists, it then holds a record and a report that say why.
    """
    return train_into(path, overrides=overrides, output=output, replace=replace, quiet=quiet)[0]


def train_into(
    path: str | Path,
    *,
    overrides: Sequence[str] | Mapping[str, object] = (),
    output: str | Path | None = None,
    replace: bool = False,
    quiet: bool = True,
) -> tuple[RunRecord, Path]:
    """`train`, with the run folder that was chosen."""
    started = time.monotonic()
    loaded = load_recipe(Path(path), overrides)
    with new_run_folder(choose_output(loaded, output), replace=replace) as folder:
        return _run(Draft(folder, loaded, started), quiet=quiet, resuming=False), folder


def resume(path: str | Path, *, quiet: bool = True) -> RunRecord:
    """Continues an interrupted run from its newest good checkpoint; the result equals the uninterrupted one.

    Raises `CheckpointError` when there is no run, none of its checkpoints is good, or recipe or data have changed.
    """
    started = time.monotonic()
    folder = existing_run(path)
    with files.owned_folder(folder):
        draft = Draft(folder, load_recipe(folder / "recipe.yaml", ()), started)
        return _run(draft, quiet=quiet, resuming=True)


def _run(draft: Draft, *, quiet: bool, resuming: bool) -> RunRecord:
    loaded, folder = draft.loaded, draft.folder
    with _failures_recorded(draft):
        draft.prepared = prepared = prepare_run(loaded)
        torch.set_num_threads(prepared.plan.resolved.threads)
        if not resuming:
            write_recipe(folder, loaded, prepared.plan.resolved)
        write_findings(folder, prepared.data.findings)
        raise_failures(prepared.data.findings)
        draft.assembly = assembly = assemble(prepared, folder, quiet=quiet)
        draft.attached = attach(assembly.model, loaded.recipe.method, context=init_context(assembly))
        draft.training_begins()
        draft.result = fit(fit_setup(assembly, resuming=resuming))
        draft.scores = score_run(assembly, draft.result)
        draft.write_adapter()
        return draft.write_record("completed")


@contextlib.contextmanager
def _failures_recorded(draft: Draft) -> Iterator[None]:
    """Whatever stops a run is in its record and report before it reaches the user."""
    try:
        yield
    except PeftcliError as error:
        draft.write_record("interrupted" if isinstance(error, Interrupted) else "failed", error)
        raise
