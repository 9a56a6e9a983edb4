"""peft migrate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Quiet, show


def command(
    file: Annotated[
        Path,
        typer.Argument(readable=False, metavar="FILE", help="Another tool's YAML or JSON.", show_default=False),
    ],
    output: Annotated[Path | None, typer.Option("--output", help="Recipe to write; must not exist.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """A recipe from another tool's configuration, key by key: Axolotl, LLaMA-Factory, TRL, torchtune, LitGPT, ms-swift,
    mlx-lm, TrainingArguments, adapter_config.json.

    Example:  peft migrate runs/first/adapter/adapter_config.json --output migrated.yaml
    """
    from peftcli.migrating.migration import migrate, migration_text

    found = migrate(file, output)
    show(found.to_dict(), migration_text(found), as_json=as_json)
