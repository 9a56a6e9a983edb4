"""peft merge"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Model, Quiet, RunOrAdapter, say, show


def command(
    path: RunOrAdapter,
    output: Annotated[Path, typer.Option("--output", help="Folder of the merged model; must not exist.")],
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16 (default: the base's).")
    ] = None,
    max_shard_size: Annotated[str, typer.Option("--max-shard-size", help="Largest weight file.")] = "5GB",
    model: Model = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Bake the adapter into its base: a plain model, reloaded and compared before it is put in place.

    Example:  peft merge runs/first --output merged
    """
    from peftcli.jobs.merge import merge_adapter, merge_text

    report = merge_adapter(
        path, output=output, base=model, dtype=dtype, max_shard_size=max_shard_size,
        say=lambda line: say(line, quiet=quiet),
    )  # fmt: skip
    show(report.to_dict(), merge_text(report), as_json=as_json)
