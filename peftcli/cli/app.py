"""The table of commands. A command's module is imported only when it is run, so that `peft --help` stays quick."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import typer
from typer.core import TyperGroup

import peftcli

COMMANDS: dict[str, str] = {
    "init": "write a starter recipe that runs",
    "validate": "check a recipe: all faults at once, with line and column",
    "plan": "what would happen: rows, tokens, steps, parameters, memory",
    "data": "the very tokens and loss mask that training will see",
    "train": "train a recipe into a run folder with adapter, metrics and report",
    "resume": "continue an interrupted run; the result is the same",
    "evaluate": "metrics of base and tuned model",
    "generate": "text from the tuned model",
    "chat": "a conversation with the tuned model",
    "merge": "bake the adapter into its base, verified",
    "export": "the adapter in another tool's format, tried there",
    "push": "adapter, card, recipe, lock and report to the Hub",
    "serve": "the command by which vLLM serves runs",
    "convert": "an adapter as LoRA, or a foreign one in our format",
    "combine": "several adapters of one base into one",
    "inspect": "what an adapter, run or model folder is",
    "diff": "two runs or adapters, compared",
    "report": "render a run's report again, or compare runs",
    "compare": "methods or settings on the same data and budget",
    "migrate": "a recipe from another tool's configuration",
    "lock": "pin what a recipe or run depends on",
    "reproduce": "run again what a lock pins, and compare",
    "methods": "the methods and their fields",
    "explain": "any recipe key or exit code",
    "schema": "JSON Schema of a recipe, for editors",
    "doctor": "this machine: packages, device, disk, and every problem with its fix",
}


class LazyCommands(TyperGroup):
    """Finds a command by its name in the table."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, made from its module, which is imported only now; None for a name that is none."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"peftcli.cli.commands.{cmd_name}")
        text, example = _help(module.command.__doc__ or "")
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name=cmd_name, help=text, epilog=example)(module.command)
        return typer.main.get_command(single)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As the parser does it; a name that is none fails with those that are near it."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=2, cutoff=0.5)
            hint = f"; did you mean {' or '.join(f'`peft {name}`' for name in near)}?" if near else ""
            ctx.fail(f"no command `{args[0]}`{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the table of commands, for which no command is imported."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _help(docstring: str) -> tuple[str, str]:
    """A command's docstring as help and, kept as it is, its example."""
    text, _, example = docstring.partition("Example:")
    lines = "\n".join(f"  {line.strip()}" for line in example.strip().splitlines())
    # the mark keeps the parser from wrapping these lines
    return text.strip(), f"\b\nExample:\n{lines}"


def _version(value: bool) -> None:
    if value:
        print(f"peft {peftcli.__version__}")
        raise typer.Exit


EXIT_CODES = (
    "Exit codes: 0 done, 1 a bug in peftcli, 2 usage or recipe, 3 data, 4 model, 5 environment, 6 storage, "
    "7 checkpoint, 8 numerics, 9 memory, 10 a check did not hold, 11 network or hub; stopped by a signal, after a "
    "checkpoint: 129 hung up, 130 interrupted, 143 terminated. `peft explain 4` says more about each."
)

app = typer.Typer(
    cls=LazyCommands, no_args_is_help=True, epilog=EXIT_CODES, add_completion=True, rich_markup_mode=None,
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)  # fmt: skip
"""The command `peft`, with one lazily loaded module for each subcommand."""


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Fine-tune language models with parameter-efficient methods: recipe in, adapter, report and verified merge out.

    Begin with:  peft init quickstart && peft train quickstart.yaml
    """


def usage_error() -> type[Exception]:
    """What the parser raises for wrong arguments (its classes are private to the installed version of Typer)."""
    return next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def interruptions() -> tuple[type[BaseException], ...]:
    """What the parser raises for Ctrl-C and for the end of input at a question."""
    return (KeyboardInterrupt, typer.Abort)
