"""peft push"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from peftcli.cli.output import AsJson, Quiet, RunOrAdapter, say, show

if TYPE_CHECKING:
    from peftcli.sharing.push import PushPlan


def command(
    path: RunOrAdapter,
    repository: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hub.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make it a private repository.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch (default: main).")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Send without asking.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Adapter, card, recipe, lock and report to the Hub, after showing what is sent; nothing else of the folder.

    Example:  peft push runs/first me/first --private --yes
    """
    from peftcli.sharing.push import push_adapter, push_text

    report = push_adapter(
        path, repository, private=private, revision=revision,
        agree=lambda plan: _agree(plan, yes=yes, quiet=quiet), say=lambda line: say(line, quiet=quiet),
    )  # fmt: skip
    show(report.to_dict(), push_text(report), as_json=as_json)


def _agree(plan: PushPlan, *, yes: bool, quiet: bool) -> None:
    from peftcli.errors import RecipeError
    from peftcli.sharing.push import plan_text

    say(plan_text(plan), quiet=quiet and yes)
    if yes or not plan.changed:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise RecipeError("nobody is here to ask; nothing was sent", fix="--yes sends without asking")
    print("send? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RecipeError("nothing was sent", fix="answer y to send")
