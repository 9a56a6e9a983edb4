"""peft reproduce"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftcli.cli.output import AsJson, Quiet, Set, conclude, say

if TYPE_CHECKING:
    from peftcli.reproduce.result import Reproduction


def command(
    path: Annotated[
        Path, typer.Argument(readable=False, metavar="RUN_OR_RECIPE", help="A run, or a recipe.", show_default=False)
    ],
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Only the first steps, on the same schedule.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Inputs, environment and every bit must match the lock.")
    ] = False,
    junit: Annotated[
        Path | None,
        typer.Option("--junit", metavar="FILE", help="Write JUnit XML, and the same in Markdown next to it."),
    ] = None,
    overrides: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run again what a lock pins, and compare: bit for bit where machine and versions are the locked ones.

    Exit 0 only when it reproduced, else 10, with the first step that differs and what parted there.

    Example:  peft reproduce quickstart.yaml --steps 20
    """
    from peftcli.errors import CheckFailed
    from peftcli.launching.places import place
    from peftcli.launching.workers import relay_workers
    from peftcli.recipe import load_recipe
    from peftcli.reproduce.job import recipe_of, reproduce
    from peftcli.reproduce.junit import result_paths
    from peftcli.reproduce.rendering import reproduction_text, verdict
    from peftcli.runs.following import follow
    from peftcli.runs.processes import as_options
    from peftcli.training.group import current_world

    # a fault in the recipe, or in the paths to write, comes before hours of training
    loaded = load_recipe(recipe_of(path), overrides or ())
    if loaded.recipe.training.processes > 1 and place().size == 1:
        flags = {"--strict": strict, "--quiet": quiet, "--json": as_json}
        named = {"--steps": steps, "--junit": junit}
        options = [*as_options(overrides or ()), *(name for name, on in flags.items() if on)]
        options += [part for name, value in named.items() if value is not None for part in (name, str(value))]
        raise typer.Exit(relay_workers(["reproduce", str(path), *options], loaded.recipe.training.processes))
    if not place().leads:
        follow(current_world())
        return
    markdown = None if junit is None else result_paths(junit)
    result = reproduce(
        path,
        overrides=overrides or (),
        steps=steps,
        strict=strict,
        quiet=quiet,
        say=lambda line: say(line, quiet=quiet),
    )
    _write(result, junit, markdown)
    error = None if result.held else CheckFailed(verdict(result), where=result.folder)
    conclude(result.to_dict(), reproduction_text(result), error, as_json=as_json)


def _write(result: Reproduction, junit: Path | None, markdown: Path | None) -> None:
    """The files that continuous integration reads, where they are asked for."""
    from peftcli import files
    from peftcli.reproduce.junit import junit_xml
    from peftcli.reproduce.rendering import reproduction_markdown

    if junit is not None:
        files.write_text(junit, junit_xml(result))
    if markdown is not None:
        files.write_text(markdown, reproduction_markdown(result))
    # where GitHub Actions reads what it shows on the job's page
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        files.append_line(Path(summary), reproduction_markdown(result))
