"""peft doctor"""

from __future__ import annotations

from typing import Annotated

import typer

from peftcli.cli.output import AsJson, Quiet, show


def command(
    clear_cache: Annotated[bool, typer.Option("--clear-cache", help="Empty the token cache.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """This machine: packages, device, kernels, disk; every problem with its fix.

    Example:  peft doctor
    """
    from peftcli.jobs.doctor import clear_token_cache, examination_text, examine

    if clear_cache:
        freed = clear_token_cache()
        show({"freed_bytes": freed}, f"cleared the token cache: {freed:,} bytes", as_json=as_json)
        return
    found = examine()
    show(found, examination_text(found), as_json=as_json)
    if any(item["fix"] and item["severity"] == "fail" for item in found["checks"]):
        # the code of an environment that cannot train; warnings leave it at 0
        raise typer.Exit(5)
