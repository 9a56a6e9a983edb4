"""peft combine"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Model, Quiet, show
from peftcli.errors import RecipeError


def command(
    adapters: Annotated[
        list[Path],
        typer.Argument(readable=False, metavar="ADAPTER...", help="Run or adapter folders.", show_default=False),
    ],
    weights: Annotated[str, typer.Option("--weights", metavar="W,...", help="One weight for each adapter.")],
    how: Annotated[
        str,
        typer.Option("--how", help="linear, cat, svd, ties, dare_linear, dare_ties or magnitude_prune."),
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder to write; must not exist.")],
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Rank of svd (default: the largest of the adapters).")
    ] = None,
    density: Annotated[
        float | None, typer.Option("--density", help="Share of entries that ties, dare and prune keep (default: 0.5).")
    ] = None,
    majority_sign: Annotated[
        str | None, typer.Option("--majority-sign", help="How ties finds signs: total (default) or frequency.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the draws of dare (default: 0).")] = None,
    model: Model = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Several adapters of one base into one: their weighted sum exactly (cat), or nearly at a smaller rank.

    Example:  peft combine runs/first converted --weights 0.5,0.5 --how cat --output both
    """
    from peftcli.jobs.combine import combine_adapters
    from peftcli.jobs.combine_report import combine_text

    report = combine_adapters(
        adapters,
        weights=_numbers(weights),
        how=how,
        output=output,
        rank=rank,
        density=density,
        majority_sign=majority_sign,
        seed=seed,
        base=model,
    )
    show(report.to_dict(), combine_text(report), as_json=as_json)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RecipeError(f"--weights {text} is no list of numbers", fix="for instance --weights 0.5,0.5") from error
