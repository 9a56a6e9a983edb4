"""peft resume"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Quiet, Set, conclude, shown_path
from peftcli.streams import wants_colour


def command(
    run: Annotated[Path, typer.Argument(readable=False, help="The run folder.")],
    overrides: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Continue an interrupted run from its newest good checkpoint; the result equals the uninterrupted one.

    With --set, other numbers of processes and threads, and what steers length, evaluation, tracking and checkpoints: a
    finished run can be made
    longer (--set training.epochs=5).

    Example:  peft resume runs/first
    """
    from peftcli.launching.places import place
    from peftcli.reports.folder import read_run
    from peftcli.reports.terminal import run_ending
    from peftcli.run import resume
    from peftcli.runs.gates import unmet

    record = resume(run, overrides=overrides or (), quiet=quiet)
    if not place().leads:
        return
    document = {**record.to_dict(), "run": str(run)}
    text = run_ending(read_run(run), shown_path(run), colour=wants_colour(sys.stdout))
    conclude(document, text, unmet(record, run), as_json=as_json, coloured=True)
